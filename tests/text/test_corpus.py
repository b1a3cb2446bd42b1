from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bertfast.errors import ArtifactError, DataError
from bertfast.text.corpus import Corpus, build_corpus, open_corpus
from bertfast.text.sentences import split_document
from bertfast.text.tokenizer import Tokenizer


def test_a_corpus_holds_every_sentence_of_every_document(corpus: Corpus, documents: list[str]) -> None:
    assert len(corpus.shards) > 1
    assert corpus.num_documents == len(documents)
    for text, (start, end) in zip(documents, pairwise(corpus.document_offsets), strict=True):
        expected = corpus.tokenizer.ids_of_texts(list(split_document(text)))
        assert [corpus.tokens(i, i + 1).tolist() for i in range(start, end)] == expected


def test_a_range_over_shards_is_the_whole(corpus: Corpus) -> None:
    tokens = corpus.tokens(0, corpus.num_sentences)
    assert len(tokens) == corpus.num_tokens
    assert np.array_equal(np.bincount(tokens, minlength=corpus.tokenizer.vocab_size), corpus.token_counts())


def test_building_twice_gives_the_same_bytes(documents: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in "ab":
        build_corpus(documents, tmp_path / name, tokenizer)
    assert open_corpus(tmp_path / "a").sha256 == open_corpus(tmp_path / "b").sha256


def test_a_stream_is_read_without_being_held(tokenizer: Tokenizer, tmp_path: Path) -> None:
    held = 0

    class Text(str):
        def __init__(self, _: str) -> None:
            nonlocal held
            held += 1

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    most = 0

    def stream() -> object:
        nonlocal most
        for _ in range(3000):
            most = max(most, held)
            yield Text("The river crosses.\nThe bridge waits.")

    build_corpus(stream(), tmp_path / "c", tokenizer)  # type: ignore[arg-type]
    assert open_corpus(tmp_path / "c").num_documents == 3000
    assert most < 600


def test_one_document_is_too_few(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 document\(s\).*at least 2.*--documents file"):
        build_corpus(["Only one."], tmp_path / "c", tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_in_half_is_refused(documents: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_corpus(documents, tmp_path / "c", tokenizer)
    shard = tmp_path / "c" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="cut short"):
        open_corpus(tmp_path / "c")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_build_leaves_no_corpus_and_the_next_one_is_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    source = tmp_path / "text.txt"
    source.write_text("The river crosses the bridge.\nThe lantern waits.\n\n" * 200_000)
    command = [
        sys.executable,
        "-m",
        "bertfast.cli",
        "corpus",
        "build",
        str(source),
        "--tokenizer",
        str(tmp_path / "vocab.txt"),
    ]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "c")], stderr=subprocess.DEVNULL)
    shard = tmp_path / "c.partial" / "tokens-00000.bin"
    deadline = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert shard.exists()
    assert not (tmp_path / "c").exists()
    source.write_text("The river crosses the bridge.\nThe lantern waits.\n\n" * 20)
    subprocess.run([*command, "--out", str(tmp_path / "c")], check=True, capture_output=True)
    subprocess.run([*command, "--out", str(tmp_path / "d")], check=True, capture_output=True)
    assert open_corpus(tmp_path / "c").sha256 == open_corpus(tmp_path / "d").sha256
