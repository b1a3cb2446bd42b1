from __future__ import annotations

import itertools
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bertfast.errors import ArtifactError, DataError
from bertfast.text import chunks
from bertfast.text.corpus import Corpus, build_corpus, open_corpus, verify_corpus
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


def test_a_stream_is_read_without_being_held(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 8192)
    held = 0

    class Text(str):
        def __init__(self, _: str) -> None:
            nonlocal held
            held += 1

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    most, number = 0, itertools.count()

    def stream() -> object:
        nonlocal most
        for _ in range(3000):
            most = max(most, held)
            yield Text(f"The river crosses {next(number)}.\nThe bridge waits {next(number)}.")

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


def test_a_shard_that_was_altered_is_found_by_its_hash(
    documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    build_corpus(documents, tmp_path / "c", tokenizer)
    sha256 = open_corpus(tmp_path / "c").sha256
    assert verify_corpus(tmp_path / "c").sha256 == sha256
    shard = tmp_path / "c" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\7\0")
    open_corpus(tmp_path / "c")
    verify_corpus(tmp_path / "c", at_most_bytes=100)
    for limit in (None, 1 << 20):
        with pytest.raises(ArtifactError, match=r"tokens-00000\.bin is not the file that its manifest names"):
            verify_corpus(tmp_path / "c", at_most_bytes=limit)


def test_mixed_scripts_are_kept_apart_and_in_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [
        "\u4f60\u597d\u3002 The river. \u041f\u0440\u0438\u0432\u0435\u0442! \u05e9\u05dc\u05d5\u05dd.",
        "\U0001f600 caf\u00e9\u200b \u0645\u0631\u062d\u0628\u0627. [MASK]",
    ]
    build_corpus(texts, tmp_path / "c", tokenizer)
    corpus = open_corpus(tmp_path / "c")
    expected = tokenizer.ids_of_texts([sentence for text in texts for sentence in split_document(text)])
    assert [corpus.tokens(i, i + 1).tolist() for i in range(corpus.num_sentences)] == expected


def test_offsets_past_the_tokens_are_refused(documents: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_corpus(documents, tmp_path / "c", tokenizer)
    corpus = open_corpus(tmp_path / "c")
    with pytest.raises(ArtifactError, match=r"has no token .* damaged. Build it again"):
        corpus.copy_tokens(corpus.num_tokens - 1, np.empty(2, np.int64))
    offsets = tmp_path / "c" / "sentences.bin"
    offsets.write_bytes(offsets.read_bytes()[:-8] + np.int64(corpus.num_tokens + 1).tobytes())
    with pytest.raises(ArtifactError, match="offsets do not end where its tokens do"):
        open_corpus(tmp_path / "c")
