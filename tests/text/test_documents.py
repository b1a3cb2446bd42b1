from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bertfast.errors import DataError
from bertfast.text import documents
from bertfast.text.documents import MAX_DOCUMENT_CHARS, TextFormat, read_documents

TEXT = "First line.\nSecond line.\n\n\nAnother document.\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_blank_lines_end_documents(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    assert list(read_documents([file])) == ["First line.\nSecond line.", "Another document."]
    assert len(list(read_documents([file], TextFormat("file")))) == 1


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", ("\ufeff" + TEXT.replace("\n", "\r\n")))
    assert list(read_documents([file])) == ["First line.\nSecond line.", "Another document."]


def test_every_format_holds_the_same_documents(tmp_path: Path) -> None:
    texts = ["One.", "Two\nlines."]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    files = [write(tmp_path / "a.jsonl", lines), write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))]
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), table)
    for file in (*files, table):
        assert list(read_documents([file])) == texts


def test_a_directory_is_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        write(tmp_path / name, name)
    assert list(read_documents([tmp_path])) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_document_without_end_comes_in_pieces(tmp_path: Path, name: str) -> None:
    text = "word \u00e9 " * (MAX_DOCUMENT_CHARS // 4)
    content = json.dumps({"text": text}) if name.endswith("jsonl") else text
    pieces = list(read_documents([write(tmp_path / name, content)]))
    assert len(pieces) > 1
    assert all(len(piece) <= MAX_DOCUMENT_CHARS for piece in pieces)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"abc\0def", "a.txt:1 holds a NUL byte"),
        ("a.txt", "ok\ncaf\u00e9".encode("latin-1"), r"a.txt:2 is not UTF-8 \(byte 0xe9 at column 4\).*iconv"),
        ("a.txt.gz", gzip.compress(b"hello world\n" * 1000, mtime=0)[:-20], "truncated or damaged"),
        ("a.txt.gz", b"this is no gzip", "truncated or damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1]\n", "a JSON list, and an object is needed"),
        ("a.jsonl", b'{"txt": "a"}\n', r"no column 'text.*it has txt\. Did you mean 'txt'"),
        ("a.jsonl", b'{"text": 3}\n', "'text' is int"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\uDc00"}\n', "a.jsonl:2 holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "a.jsonl:1 is not JSON .*4300 digits"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
        ("a.parquet", b"PAR1 and then nothing", "not a whole Parquet file"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_documents([write(tmp_path / name, content)]))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", "x")
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'corpus.txt'"):
        list(read_documents([tmp_path / "corpu.txt"]))


def test_damage_inside_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"Sentence {i * 7919} of many." for i in range(5000)]})
    pyarrow.parquet.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[1000:3000] = b"\xff" * 2000
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is not a whole Parquet file: .*again"):
        list(read_documents([path]))


def test_of_a_parquet_file_only_the_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "content": ["One."], "body": ["Two."]}), path)
    asked: list[object] = []
    read = documents.read_parquet

    def watched(*arguments: object) -> object:
        for number, row in read(*arguments):  # type: ignore[arg-type]
            asked.append(list(row))
            yield number, row

    monkeypatch.setattr(documents, "read_parquet", watched)
    assert list(read_documents([path])) == ["One."]
    assert list(read_documents([path], TextFormat(text_column="body"))) == ["Two."]
    assert asked == [["content"], ["body"]]
