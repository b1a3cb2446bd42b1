"""One corpus whatever the number of workers, and whatever happens on the way."""

from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path

import pytest

import bertfast
from bertfast.artifact import open_manifest
from bertfast.errors import ArtifactError, ConfigError, DataError, WorkerError
from bertfast.text import chunks, shards, workplace
from bertfast.text import tokenizer as tokenization
from bertfast.text.build import Job, Part, Workforce, in_processes, in_this_process, workforce_of
from bertfast.text.chunks import Chunk
from bertfast.text.corpus import build_corpus, build_corpus_of_files, open_corpus, verify_corpus
from bertfast.text.documents import read_documents
from bertfast.text.tokenizer import Tokenizer
from bertfast.text.workplace import NewVocabulary, working_place

SHARD_TOKENS = 1500


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    monkeypatch.setattr("bertfast.text.corpus._NOTE_EVERY_S", 0.0)


@pytest.fixture
def inputs(documents: list[str], tmp_path: Path) -> list[Path]:
    folder = tmp_path / "inputs"
    folder.mkdir()
    foreign = [
        text.replace("The", "One").replace("river", "na\u00efve \u6771\u4eac \U0001f600 \u0440\u0435\u043a\u0430")
        for text in documents
    ]
    packed = [text.replace("The", "Each") for text in documents]
    (folder / "a.txt").write_text("\n\n".join(documents))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in foreign))
    (folder / "c.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in packed).encode())
    )
    return [folder]


@pytest.fixture
def build(inputs: list[Path], tokenizer: Tokenizer) -> partial[None]:
    workforce = in_this_process
    return partial(build_corpus_of_files, inputs, tokenizer=tokenizer, workforce=workforce, shard_tokens=SHARD_TOKENS)


@pytest.fixture
def whole(build: partial[None], tmp_path: Path) -> str:
    """The identity of an undisturbed build."""
    build(out=tmp_path / "whole")
    return open_corpus(tmp_path / "whole").sha256


def after(count: int, seen: list[Chunk] | None = None) -> Workforce:
    """A workforce that is interrupted after some chunks."""

    def workforce(stream: Iterable[Chunk], job: Job) -> Generator[Part, None, None]:
        for number, chunk in enumerate(stream):
            if number == count:
                raise KeyboardInterrupt
            if seen is not None:
                seen.append(chunk)
            yield from in_this_process([chunk], job)

    return workforce


def test_the_number_of_workers_and_the_size_of_chunks_change_no_byte(
    inputs: list[Path],
    build: partial[None],
    whole: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_corpus(read_documents(inputs), tmp_path / "texts", tokenizer, shard_tokens=SHARD_TOKENS)
    build(out=tmp_path / "three", workforce=partial(in_processes, workers=3))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    build(out=tmp_path / "small")
    expected = open_manifest(tmp_path / "whole")
    assert len(expected.settings["shard_starts"]) > 2
    for name in ("texts", "three", "small"):
        manifest = open_manifest(tmp_path / name)
        assert (manifest.sha256, manifest.settings) == (whole, expected.settings)
    assert not list(tmp_path.glob("*.build"))


def test_a_build_goes_on_with_the_next_chunk(build: partial[None], whole: str, tmp_path: Path) -> None:
    out, seen = tmp_path / "c", list[Chunk]()
    for count in (1, 0, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            build(out=out, workforce=after(count, seen))
        assert not out.exists()
    build(out=out, workforce=after(1000, seen))
    assert open_corpus(out).sha256 == whole
    assert sum(chunk.size for chunk in seen) == sum(chunk.size for chunk in set(seen))
    assert not list(tmp_path.glob("*.build"))


def test_what_was_written_after_the_last_note_is_cut_off(build: partial[None], whole: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(out=tmp_path / "c", workforce=after(4))
    for path in (tmp_path / "c.build").glob("*.bin"):
        path.write_bytes(path.read_bytes() + b"torn")
    (tmp_path / "c.build" / "tokens-00099.bin").write_bytes(b"torn")
    build(out=tmp_path / "c")
    assert open_corpus(tmp_path / "c").sha256 == whole
    with pytest.raises(KeyboardInterrupt):
        build(out=tmp_path / "d", workforce=after(4))
    shard = sorted((tmp_path / "d.build").glob("tokens-*"))[-1]
    shard.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"holds 0 bytes, and .* noted.*remove .*d\.build"):
        build(out=tmp_path / "d")


def test_other_settings_or_inputs_are_refused_and_lose_nothing(
    inputs: list[Path], build: partial[None], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        build(out=out, workforce=after(2))
    for change in ({"newlines": "wrapped"}, {"shard_tokens": 7}, {"tokenizer": NewVocabulary(150)}):
        with pytest.raises(ArtifactError, match="unfinished build of which .* differ"):
            build(out=out, **change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not exist"):
        build_corpus_of_files([tmp_path / "nothing"], out, build.keywords["tokenizer"])
    kept = shards.read_progress(tmp_path / "c.build")
    assert kept is not None
    assert kept.pieces == 2
    file = inputs[0] / "a.txt"
    file.write_text(file.read_text() + "\n\nOne document more.")
    with pytest.raises(ArtifactError, match=r"inputs \(.*a\.txt\) differ"):
        build(out=out)
    build(out=out, overwrite=True)
    build(out=tmp_path / "d")
    assert open_corpus(out).sha256 == open_corpus(tmp_path / "d").sha256


@pytest.mark.filterwarnings("ignore:the text yields")
def test_a_vocabulary_is_trained_once(
    inputs: list[Path], build: partial[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(out=tmp_path / "whole", tokenizer=NewVocabulary(200))
    with pytest.raises(KeyboardInterrupt):
        build(out=tmp_path / "c", tokenizer=NewVocabulary(200), workforce=after(0))
    monkeypatch.setattr(tokenization, "train", None)
    build(out=tmp_path / "c", tokenizer=NewVocabulary(200))
    assert open_corpus(tmp_path / "c").sha256 == open_corpus(tmp_path / "whole").sha256
    with pytest.raises(TypeError):
        build(out=tmp_path / "d", tokenizer=NewVocabulary(150))


def test_a_worker_that_is_killed_is_said_and_not_waited_for(build: partial[None], whole: str, tmp_path: Path) -> None:
    def kill(documents: int, _: int) -> None:
        if documents:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"fewer --workers: the build goes on.*under `if __name__"):
        build(out=tmp_path / "c", workforce=partial(in_processes, workers=2), on_progress=kill)
    progress = shards.read_progress(tmp_path / "c.build")
    assert progress is not None
    assert progress.pieces > 0
    build(out=tmp_path / "c")
    assert open_corpus(tmp_path / "c").sha256 == whole


def test_ray_that_is_not_there_is_said_before_anything_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bertfast\[ray\]'"):
        workforce_of("ray", None)


def test_a_second_build_at_the_same_place_is_refused(build: partial[None], tmp_path: Path) -> None:
    with working_place(tmp_path / "c"), pytest.raises(ArtifactError, match="another process is building"):
        build(out=tmp_path / "c")


def test_a_file_system_without_links_will_do(
    build: partial[None], whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    build(out=tmp_path / "c")
    assert open_corpus(tmp_path / "c").sha256 == whole


def test_what_a_kill_at_the_very_end_leaves_is_no_danger_to_the_corpus(
    build: partial[None], whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus and `OUT.build` hold the same files then."""
    with monkeypatch.context() as patch:
        patch.setattr(workplace, "_remove", lambda place: None)
        build(out=tmp_path / "c")
    assert (tmp_path / "c.build" / shards.SENTENCES).samefile(tmp_path / "c" / shards.SENTENCES)
    with pytest.raises(KeyboardInterrupt):
        build(out=tmp_path / "c", newlines="sentence", overwrite=True, workforce=after(1))
    assert verify_corpus(tmp_path / "c").sha256 == whole


SCRIPT = """
import sys, time
from bertfast import cli
from bertfast.text import chunks, corpus, shards
def note_and_wait(self):
    note(self)
    if gate and self.progress.pieces >= int(gate):  # here it stands until it is killed
        open("gate", "w").close()
        time.sleep(600)
if __name__ == "__main__":
    chunks.CHUNK_BYTES = 20_000
    corpus._NOTE_EVERY_S = 0.0
    gate, note = sys.argv.pop(1), shards.ShardWriter.note
    shards.ShardWriter.note = note_and_wait
    cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are found in /proc")
def test_a_killed_or_interrupted_build_goes_on_and_leaves_no_process(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "run.py").write_text(SCRIPT)
    os.mkfifo(tmp_path / "gate")
    lines = (f"The river {i} crosses the bridge.\nThe lantern waits {i * 7}.\n\n" for i in range(7_000))
    (tmp_path / "text.txt").write_text("".join(lines))
    verb = ["corpus", "build", "text.txt", "--tokenizer", "vocab.txt", "--workers", "2", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(bertfast.__file__).parents[1])}
    start = partial(subprocess.Popen, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    for sign, pieces in ((signal.SIGKILL, 4), (signal.SIGINT, 8)):
        process = start([sys.executable, "run.py", str(pieces), *verb, "c"])
        (tmp_path / "gate").read_bytes()
        progress = shards.read_progress(tmp_path / "c.build")
        assert progress is not None
        assert progress.pieces == pieces
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if sign == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, sign)
        message = process.communicate(timeout=60)[1].decode()
        assert "Traceback" not in message
        assert ("a corpus build when it is started again" in message) == (sign == signal.SIGINT)
        assert children
        assert gone(children)
        assert not (tmp_path / "c").exists()
    for name in "cd":
        command = [sys.executable, "run.py", "", *verb, name]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert open_corpus(tmp_path / "c").sha256 == open_corpus(tmp_path / "d").sha256
    assert not list(tmp_path.glob("*.build"))


def gone(processes: list[str]) -> bool:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            b"One document.\nIt has two lines.",
            r"1 document\(s\), and next-sentence prediction needs at least 2",
        ),
        ("a.txt", b"\n \n\n", "holds no text"),
        ("a.txt", b"A document.\n\nA\0nother.\n", "a.txt:3 holds a NUL byte"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\udc00"}\n', "a.jsonl:2 holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', "a.jsonl holds no text"),
    ],
)
def test_bad_text_leaves_nothing_behind(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_corpus_of_files([tmp_path / name], tmp_path / "c", tokenizer, workforce=partial(in_processes, workers=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_half_a_surrogate_pair_from_python_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="half of a surrogate pair at character 2"):
        build_corpus(["a b.", "a \ud83d"], tmp_path / "c", tokenizer)


def test_documents_of_one_sentence_and_repeated_lines_are_warned_of(
    tmp_path: Path, tokenizer: Tokenizer, build: partial[None]
) -> None:
    single = tmp_path / "single.txt"
    single.write_text("\n\n".join(f"Sentence {i} stands alone." for i in range(50)))
    with pytest.warns(UserWarning, match="every document is one sentence"):
        build_corpus_of_files([single], tmp_path / "a", tokenizer, workforce=in_this_process)
    assert open_corpus(tmp_path / "a").num_documents == 50
    repeated = tmp_path / "repeated.txt"
    repeated.write_text("\n\n".join(f"Sentence {i} is new.\nAll rights reserved." for i in range(50)))
    with pytest.warns(UserWarning, match="49% of the sentences repeat an earlier one"):
        build_corpus_of_files([repeated], tmp_path / "b", tokenizer, workforce=in_this_process)
    assert open_manifest(tmp_path / "b").settings["duplicate_sentence_share"] == pytest.approx(0.49)


MEMORY = """
import resource, sys
from pathlib import Path
from bertfast.text import chunks, documents, tokenizer
from bertfast.text.build import in_this_process
from bertfast.text.corpus import build_corpus_of_files
chunks.CHUNK_BYTES = documents.MAX_DOCUMENT_CHARS = 1 << 16
build = lambda name: build_corpus_of_files([Path(name)], Path(name + ".corpus"), words, workforce=in_this_process)
words = tokenizer.load(Path("vocab.txt"))
build("short.txt")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build("long.txt")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    sentences = [f"{a} {b} crosses the old {c}. " for a, b, c in itertools.product(("The", "A"), "xyz", "abcdefgh")]
    (tmp_path / "short.txt").write_text("One document.\n\n" + "".join(sentences * 100))
    (tmp_path / "long.txt").write_text("One document.\n\n" + "".join(sentences * 10_000))
    environment = {**os.environ, "PYTHONPATH": str(Path(bertfast.__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    size_kb = (tmp_path / "long.txt").stat().st_size / 1024
    assert size_kb > 10_000
    assert int(done.stdout) < size_kb / 3
