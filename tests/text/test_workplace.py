"""What lies in `OUT.build`: when it is kept, when it is taken up, and when it is refused."""

from __future__ import annotations

import errno
import fcntl
import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bertfast import artifact
from bertfast.errors import ArtifactError, ConfigError, DataError
from bertfast.text import chunks, shards, workplace
from bertfast.text.build import in_this_process
from bertfast.text.corpus import build_corpus, build_corpus_of_files, open_corpus
from bertfast.text.documents import TextFormat
from bertfast.text.tokenizer import Tokenizer


@pytest.fixture
def folder(documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    folder = tmp_path / "inputs"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n\n".join(documents[number::4]))
    return folder


@pytest.fixture
def build(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> partial[None]:
    return partial(
        build_corpus_of_files, [folder], tmp_path / "c", tokenizer, workforce=in_this_process, shard_tokens=600
    )


@pytest.fixture
def unfinished(folder: Path, build: partial[None], tmp_path: Path) -> Path:
    """A build that ended with its third file, where text holds a NUL byte."""
    good = (folder / "2.txt").read_bytes()
    (folder / "2.txt").write_bytes(good[:50] + b"\0" + good[50:])
    with pytest.raises(DataError, match=r"2\.txt:\d+ holds a NUL byte.* is kept in .*c\.build: mend or remove"):
        build()
    (folder / "2.txt").write_bytes(good)
    return tmp_path / "c.build"


def test_a_bad_file_is_mended_and_the_build_goes_on(
    folder: Path, build: partial[None], unfinished: Path, tmp_path: Path
) -> None:
    note = shards.read_progress(unfinished)
    assert note is not None
    assert note.files == 2
    (folder / "3.txt").unlink()
    (folder / "4.txt").write_text("A file.\nIt came later.\n\nAnother document.\nIt came as well.\n")
    done: list[int] = []
    build(on_progress=lambda documents, _: done.append(documents))
    assert done[0] == note.documents > 1
    build_again(build, tmp_path / "fresh")
    assert open_corpus(tmp_path / "c").sha256 == open_corpus(tmp_path / "fresh").sha256
    assert not unfinished.exists()


def build_again(build: partial[None], out: Path) -> None:
    build_corpus_of_files(build.args[0], out, build.args[2], **build.keywords)


@pytest.mark.parametrize("change", ["altered", "removed", "added"])
def test_a_file_that_was_read_must_not_change(
    folder: Path, build: partial[None], unfinished: Path, change: str
) -> None:
    if change == "altered":
        (folder / "1.txt").write_text("Other text.\n\nOf two documents.")
    elif change == "removed":
        (folder / "0.txt").unlink()
    else:
        (folder / "00.txt").write_text("Other text.")
    with pytest.raises(ArtifactError, match=r"inputs \(.*\d\.txt\) differ.*--overwrite"):
        build()
    assert shards.read_progress(unfinished) is not None


def test_a_damaged_note_is_said_and_loses_nothing(build: partial[None], unfinished: Path) -> None:
    (unfinished / "progress.json").write_text('{"pieces": 1')
    before = sorted(unfinished.iterdir())
    with pytest.raises(ArtifactError, match=r"progress\.json cannot be read.*--overwrite or remove"):
        build()
    assert sorted(unfinished.iterdir()) == before
    build(overwrite=True)


@pytest.mark.parametrize("name", ["tokens-00000.bin", shards.SENTENCES, shards.DOCUMENTS, shards.HASHES])
def test_every_file_is_checked_before_a_build_goes_on(build: partial[None], unfinished: Path, name: str) -> None:
    assert len(list(unfinished.glob("tokens-*"))) > 1
    path = unfinished / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{name} holds .* were noted.*remove"):
        build()
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} holds 0 bytes"):
        build()


def test_the_note_goes_first_and_the_mark_last(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (gone.append(path.name), unlink(path, **options))[1])
    workplace._remove(unfinished)
    assert gone[0] == "progress.json"
    assert gone[-1] == ".bertfast"
    unfinished.mkdir()  # killed between the last two
    artifact.make_own_directory(unfinished)


def test_a_file_system_without_locks_is_warned_of(build: partial[None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="see to it that no second process works there"):
        build()


def test_an_out_inside_of_an_input_is_refused(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "c", tmp_path / "link" / "deep" / "c"):
        with pytest.raises(ConfigError, match="lies in the input"):
            build_corpus_of_files([folder], out, tokenizer)
    assert len(list(folder.iterdir())) == 4


def test_a_text_column_of_no_input_is_refused(build: partial[None]) -> None:
    with pytest.raises(ConfigError, match="no input is JSON lines or Parquet"):
        build(text_format=TextFormat(text_column="text"))


@pytest.mark.parametrize(
    ("name", "content"), [("b.txt", "\n \n\t\n"), ("b.jsonl", '{"text": " "}\n'), ("b.parquet", "")]
)
@pytest.mark.parametrize("last", [False, True])
def test_a_file_without_text_is_refused_wherever_it_stands(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, name: str, content: str, last: bool
) -> None:
    path = folder / (f"9{name}" if last else f"1{name}")
    path.write_text(content)
    if name == "b.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["", " "]}), path)
    with pytest.raises(DataError, match=rf"{path.name} holds no text"):
        build_corpus_of_files([folder], tmp_path / "c", tokenizer, workforce=in_this_process)


def build_often(build: partial[None]) -> None:
    """Build, cut off after each chunk: most of them end within a document, whose end was written after the note."""

    def interrupt(_: int, size: int) -> None:
        if size:
            raise KeyboardInterrupt

    note = build.args[1].with_name("often.build") / shards.DOCUMENTS
    for _ in range(60):
        with suppress(KeyboardInterrupt):
            return build(workforce=in_this_process, shard_tokens=100, on_progress=interrupt)
        note.write_bytes(note.read_bytes()[:-8] + b"\7" * 8)
    raise TimeoutError


def test_one_long_document_stays_one(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertfast.text.documents.MAX_DOCUMENT_CHARS", 300)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
    long = "\n".join(f"The river {i} crosses the old bridge." for i in range(200))
    texts = ["One.\nTwo.", long, "\u200b" * 299 + "\n" + "The tower stands.\nIt waits.", "Three.\nFour.", long[:-1]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    with pytest.warns(UserWarning, match="repeat"):
        build_corpus(texts, tmp_path / "memory", tokenizer, shard_tokens=100)
    whole = open_corpus(tmp_path / "memory")
    assert whole.document_offsets.tolist() == [0, 2, 202, 204, 206, 406]
    for name in ("a.jsonl", "a.txt"):
        with pytest.warns(UserWarning, match="repeat"):
            build_corpus_of_files(
                [tmp_path / name], tmp_path / f"{name}.c", tokenizer, workforce=in_this_process, shard_tokens=100
            )
        assert open_corpus(tmp_path / f"{name}.c").sha256 == whole.sha256
    monkeypatch.setattr("bertfast.text.corpus._NOTE_EVERY_S", 0.0)
    with pytest.warns(UserWarning, match="repeat"):
        build_often(partial(build_corpus_of_files, [tmp_path / "a.txt"], tmp_path / "often", tokenizer))
    assert open_corpus(tmp_path / "often").sha256 == whole.sha256
    (tmp_path / "long.txt").write_text(long)
    with pytest.raises(DataError, match=r"1 document\(s\)"):
        build_corpus_of_files([tmp_path / "long.txt"], tmp_path / "l", tokenizer, workforce=in_this_process)
    assert not (tmp_path / "l.build").exists()


def test_a_first_document_that_took_hours_is_kept(folder: Path, build: partial[None], tmp_path: Path) -> None:
    (folder / "0.txt").write_text("The river crosses the bridge.\n" * 500)
    good = (folder / "1.txt").read_bytes()
    (folder / "1.txt").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"1\.txt:1 holds a NUL byte.* is kept in .*c\.build"):
        build(text_format=TextFormat("file"))
    (folder / "1.txt").write_bytes(good)
    with pytest.warns(UserWarning, match="repeat"):
        build(text_format=TextFormat("file"))
    assert open_corpus(tmp_path / "c").num_documents == 4
