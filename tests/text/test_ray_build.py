"""The build on Ray makes the bytes of the local one. Needs `pip install 'bertfast[ray]'`; the marker is `slow`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bertfast.artifact import open_manifest
from bertfast.errors import DataError
from bertfast.text import chunks, ray_build
from bertfast.text.build import in_processes, workforce_of
from bertfast.text.corpus import build_corpus_of_files
from bertfast.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray leaves sockets and files to the collector


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'bertfast[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def inputs(documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(ray_build, "_WINDOW_CHARS", 5000)
    monkeypatch.setattr(ray_build, "_WINDOW_CHUNKS", 4)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    rows = (json.dumps({"text": text.replace("The", "Each")}) + "\n" for text in documents)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    return [tmp_path / "a.txt", tmp_path / "b.jsonl.gz"]


@pytest.mark.usefixtures("cluster")
def test_ray_and_local_builds_are_the_same(
    inputs: list[Path], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = [path.relative_to(tmp_path) for path in inputs]
    build = partial(build_corpus_of_files, relative, tokenizer=tokenizer, shard_tokens=1500)
    build(out=tmp_path / "ray", workforce=workforce_of("ray", None))
    build(out=tmp_path / "local", workforce=partial(in_processes, workers=2))
    one, other = open_manifest(tmp_path / "ray"), open_manifest(tmp_path / "local")
    assert one.sha256 == other.sha256
    assert one.settings == other.settings


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_with_an_input_comes_back_as_such(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 is not JSON"):
        build_corpus_of_files([tmp_path / "a.jsonl"], tmp_path / "c", tokenizer, workforce=workforce_of("ray", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.usefixtures("cluster")
def test_a_build_that_was_cut_off_in_processes_goes_on_in_ray(
    inputs: list[Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def interrupt(documents: int, _: int) -> None:
        if documents:
            raise KeyboardInterrupt

    build = partial(build_corpus_of_files, inputs, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bertfast.text.corpus._NOTE_EVERY_S", 0.0)
        build(out=tmp_path / "c", workforce=partial(in_processes, workers=2), on_progress=interrupt)
    done: list[int] = []
    build(
        out=tmp_path / "c", workforce=workforce_of("ray", None), on_progress=lambda documents, _: done.append(documents)
    )
    build(out=tmp_path / "d", workforce=partial(in_processes, workers=1))
    assert done[0] > 0
    assert open_manifest(tmp_path / "c").sha256 == open_manifest(tmp_path / "d").sha256
