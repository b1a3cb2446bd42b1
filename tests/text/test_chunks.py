from __future__ import annotations

import gzip
import itertools
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast.errors import DataError
from bertfast.text import chunks, documents
from bertfast.text.chunks import Chunk, chunks_of, pieces_of
from bertfast.text.documents import Boundary, Continuation, TextFormat, in_pieces, read_documents

TEXT = st.lists(
    st.sampled_from(
        [
            *("\n", "\n\n", "\r\n", " \n", "\t", "\ufeff", "\u3000\n", " " * 47, " " * 48, " " * 99, "x" * 48 + "\n"),
            *("A word.", "caf\u00e9 " * 9, "x" * 70, "\u4f60" * 30),
        ]
    )
).map("".join)


def documents_of(text: str, boundary: Boundary) -> list[str]:
    """The documents of a small plain text, each whole, without the white space around its lines and blank lines."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if boundary == "file":
        found = [lines]
    else:
        found = [list(group) for blank, group in itertools.groupby(lines, lambda line: not line.strip()) if not blank]
    documents = ("".join("".join(lines).split()) for lines in found)
    return [document for document in documents if document]


def joined(pieces: list[str]) -> list[str]:
    """Documents of pieces, without white space: where it is cut, a line may lose some."""
    documents: list[str] = []
    for piece in pieces:
        if isinstance(piece, Continuation):
            documents[-1] += "".join(piece.split())
        else:
            documents.append("".join(piece.split()))
    return documents


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, documents and steps backwards of a few bytes, so that short files show what long ones do."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)
    monkeypatch.setattr(chunks, "_LOOK_BACK", 8)
    monkeypatch.setattr(chunks, "_LARGEST_ROW_GROUP", 300)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_CHARS", 48)


def cut(inputs: list[Path], text_format: TextFormat) -> list[Chunk]:
    return list(chunks_of(pieces_of(inputs, text_format)))


def read(inputs: list[Path], text_format: TextFormat) -> list[str]:
    return [text for chunk in cut(inputs, text_format) for _, text in chunk.texts(text_format)]


@pytest.mark.usefixtures("small")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, boundary=st.sampled_from(["blank-line", "file"]))
def test_plain_text_in_chunks_is_what_it_is_as_a_stream(
    tmp_path_factory: pytest.TempPathFactory, text: str, boundary: Boundary
) -> None:
    file = tmp_path_factory.getbasetemp() / "a.txt"
    file.write_bytes(text.encode())
    expected = documents_of(text, boundary)
    if not expected:
        with pytest.raises(DataError, match=r"holds no text|is empty"):
            list(read_documents([file], TextFormat(boundary)))
        return
    pieces = read([file], TextFormat(boundary))
    assert joined(pieces) == expected
    assert all(len(piece) <= 48 for piece in pieces)
    stream = list(read_documents([file], TextFormat(boundary)))
    assert [(type(piece), piece) for piece in pieces] == [(type(piece), piece) for piece in stream]


@pytest.mark.usefixtures("small")
def test_every_format_in_chunks_is_what_it_is_as_a_stream(tmp_path: Path) -> None:
    texts = ["One.", "Two\nlines.", "", "A longer one. " * 12, " ", *(f"Document {i}." for i in range(40))]
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
    files = {name: tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.parquet", "e.txt")}
    files["a.jsonl"].write_bytes(lines)
    files["b.jsonl.gz"].write_bytes(gzip.compress(lines))
    files["e.txt"].write_text("\n\n".join(texts))
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, files["c.parquet"], row_group_size=7)
    pyarrow.parquet.write_table(table, files["d.parquet"])
    text_format = TextFormat()
    for file in files.values():
        assert read([file], text_format) == list(read_documents([file]))
    # Whoever works on the chunk reads it, wherever that can be.
    carried = {
        name: any(isinstance(piece, str) for _, piece in pieces_of([file], text_format)) for name, file in files.items()
    }
    assert carried == {"a.jsonl": False, "b.jsonl.gz": True, "c.parquet": False, "d.parquet": True, "e.txt": True}
    assert read([tmp_path], text_format) == list(read_documents([tmp_path]))


@pytest.mark.usefixtures("small")
def test_a_long_document_is_cut_alike_in_every_format(tmp_path: Path) -> None:
    texts = [
        "caf\u00e9 " * 40 + "\n" + "\u4f60" * 48 + "\nEnd",
        " " * 48 + "late",
        "short",
        "line\n" * 30 + "end",
        "x" * 48,
    ]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    expected = [(type(piece), piece.strip()) for piece in in_pieces(texts)]
    assert sum(kind is str for kind, _ in expected) == len(texts)
    assert len(expected) >= 2 * len(texts)
    for path in tmp_path.iterdir():
        assert [(type(piece), piece.strip()) for piece in read([path], TextFormat())] == expected


@pytest.mark.usefixtures("small")
def test_a_cut_line_is_one_line_to_errors(tmp_path: Path) -> None:
    good = "x" * 48 + "\n" + " " * 100 + "y" * 500 + "\n" + "z\n" * 30
    (tmp_path / "a.txt").write_bytes(good.encode() + b"\0\n")
    for text_format in (TextFormat(), TextFormat("file")):
        with pytest.raises(DataError, match=r"a\.txt:33 holds a NUL"):
            read([tmp_path / "a.txt"], text_format)
    (tmp_path / "b.txt").write_bytes(b"A first document.\n\n" * 10 + good.encode() + b"\0\n")
    with pytest.raises(DataError, match=r"b\.txt:53 holds a NUL"):
        read([tmp_path / "b.txt"], TextFormat())


def test_small_files_share_a_chunk_and_large_ones_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    for i in range(100):
        (tmp_path / f"{i:03}.txt").write_text(f"A document of about {i} words.\n\nAnother one.\n")
    (tmp_path / "large.txt").write_text("A document of some words.\n\n" * 200)
    sizes = [chunk.size for chunk in cut([tmp_path], TextFormat())]
    assert sum(sizes) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert max(sizes) <= 1000
    assert all(one + other > 1000 for one, other in itertools.pairwise(sizes))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.jsonl", b'{"text": ', r"a.jsonl:31 is not JSON"),
        ("a.jsonl", b'{"text": "a \\ud83d"}', r"a.jsonl:31 holds half of a surrogate pair"),
        ("a.jsonl", b'{"txt": "a"}', r"a.jsonl:31 has no column"),
        ("a.txt", b"a\0b", r"a.txt:31 holds a NUL byte"),
        ("a.txt", b"caf\xe9 au lait", r"a.txt:31 is not UTF-8 \(byte 0xe9 at column 4\)"),
    ],
)
def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path: Path, name: str, line: bytes, message: str) -> None:
    good = b'{"text": "A good line."}\n' if name.endswith("jsonl") else b"A good one.\n\n"
    (tmp_path / name).write_bytes(good * (30 if name.endswith("jsonl") else 15) + line + b"\n" + good)
    with pytest.raises(DataError, match=message):
        read([tmp_path / name], TextFormat())


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("A document.\n\n" * 10)
    (chunk,) = cut([file], TextFormat())
    os.truncate(file, 50)
    with pytest.raises(DataError, match="became shorter"):
        list(chunk.texts(TextFormat()))


@pytest.mark.usefixtures("small")
def test_a_row_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_JSON_LINE_BYTES", 1000)
    file = tmp_path / "a.jsonl"
    row = json.dumps({"text": "word " * 150}) + "\n"
    file.write_text(row * 3)
    assert "".join(read([file], TextFormat())) == "word " * 450
    file.write_text(row + json.dumps({"text": "word " * 250}) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2 is over 1,000 bytes long"):
        read([file], TextFormat())
