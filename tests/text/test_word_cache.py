from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from bertfast.text import tokenizer as tokenization
from bertfast.text import word_cache
from bertfast.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from bertfast.text.word_cache import WordCache, token_dtype

PIECES = [
    *"abcdefgrtuxyz019.,!?-'\"[]()#$",
    "the",
    "##er",
    "##s",
    "##a",
    "\u4f60",
    "\u597d",
    "\u00e9",
    "\u0301",
    "\u03c3",
]
RULES = [{}, {"lowercase": False}, {"strip_accents": False}, {"handle_chinese_chars": False}, {"clean_text": False}]
AWKWARD = st.sampled_from(
    [
        *" \t\n\0\u200b\u00a0\ufeff\u0301\u0338\u0345\u0130\u03a3\u03c2\u4f60\u597d\uf900\u212b\uac00\u1100.,![]<>'\"",
        "the",
        "[MASK]",
        "The",
    ]
)


def cache_of(rules: dict[str, bool]) -> WordCache:
    return WordCache(tokenization.from_vocab([*SPECIAL_TOKENS, *PIECES], normalizers.BertNormalizer(**rules)))


CACHES = [cache_of(rules) for rules in RULES]


@given(st.one_of(st.text(), st.lists(AWKWARD).map("".join)))
def test_ids_are_those_of_the_tokenizer_whatever_the_text_and_the_rules(text: str) -> None:
    for cache in CACHES:
        assert np.frombuffer(cache.ids(text), np.uint16).tolist() == cache._tokenizer.ids_of_texts([text])[0]


def test_a_word_is_tokenised_once_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of({})
    monkeypatch.setattr(word_cache, "_MAX_WORDS", 3)
    asked: list[str] = []
    encode = cache._encode
    monkeypatch.setattr(cache, "_encode", lambda text: (asked.append(text), encode(text))[1])
    assert cache.ids("the era the era") == cache.ids("the era") * 2
    assert asked == ["the", "era"]
    for text in ("a b c d e f g", "x" * 1000):
        cache.ids(text)
        assert len(cache) <= 3
    assert "x" * 1000 not in cache


def test_a_large_vocabulary_takes_four_bytes_an_id() -> None:
    tokens = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(70_000))]
    tokenizer = tokenization.from_vocab(tokens, normalizers.BertNormalizer())
    assert token_dtype(tokenizer) == np.uint32
    assert np.frombuffer(WordCache(tokenizer).ids("w69999 w0"), np.uint32).tolist() == [70_004, 5]


@pytest.mark.parametrize("change", ["another pre-tokenizer", "an added token of several words"])
def test_what_cuts_words_otherwise_goes_through_the_tokenizer(change: str) -> None:
    backend = tokenizers.Tokenizer.from_str(CACHES[0]._tokenizer.backend.to_str())
    if change == "another pre-tokenizer":
        backend.pre_tokenizer = pre_tokenizers.Split("e", "isolated")
    else:
        backend.add_tokens([tokenizers.AddedToken("the rat", normalized=True)])
    cache = WordCache(Tokenizer(backend))
    texts = ("see The Rat.", "the  rat", "a-b e")
    ids = [np.frombuffer(cache.ids(text), np.uint16).tolist() for text in texts]
    assert ids == cache._tokenizer.ids_of_texts(texts)
    cache._cuts_words = True  # what would become of them
    assert [np.frombuffer(cache.ids(text), np.uint16).tolist() for text in texts] != ids
