from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from bertfast.config import PretrainConfig
from bertfast.errors import ConfigError
from bertfast.text import tokenizer as tokenization
from bertfast.text.masking import Masking, choose_spans, choose_words, inner_pieces, mask_tokens, masking_of, words_of
from bertfast.text.tokenizer import SPECIAL_TOKENS

HEADS, PIECES = range(5, 105), range(105, 205)
TOKENIZER = tokenization.from_vocab(
    [*SPECIAL_TOKENS, *(f"w{i}" for i in HEADS), *(f"##p{i}" for i in PIECES)], normalizers.BertNormalizer()
)
CLS, SEP, MASK = TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id
UNITS = ("token", "whole-word", "span")


def masking(**settings: object) -> Masking:
    return masking_of(PretrainConfig.parse({"max_length": 128} | settings, "test"), TOKENIZER)


def sequence(rng: np.random.Generator, length: int = 128) -> np.ndarray:
    """`[CLS] a [SEP] b [SEP]` of words of one to five pieces; both segments begin inside of a word now and then."""
    inner = rng.random(length) < 0.3
    ids = np.where(inner, rng.choice(PIECES, length), rng.choice(HEADS, length))
    ids[0], ids[rng.integers(2, length - 2)], ids[-1] = CLS, SEP, SEP
    return ids


def grouped(ids: np.ndarray) -> list[list[int]]:
    """The positions of each word, found token by token."""
    words: list[list[int]] = []
    before_is_special = True
    for position, index in enumerate(ids.tolist()):
        if index in (CLS, SEP):
            before_is_special = True
            continue
        if index in PIECES and not before_is_special:
            words[-1].append(position)
        else:
            words.append([position])
        before_is_special = False
    return words


def close(count: float, trials: int, probability: float) -> bool:
    """Within five standard deviations of a binomial count: a right one fails once in two million."""
    return abs(count - trials * probability) <= 5 * np.sqrt(trials * probability * (1 - probability))


def test_inner_pieces_are_those_with_the_prefix() -> None:
    assert np.flatnonzero(inner_pieces(TOKENIZER)).tolist() == list(PIECES)


def test_words_begin_anew_after_a_special_token() -> None:
    ids = np.array([CLS, 105, 106, 5, 6, 107, SEP, 108, 7, SEP])
    starts, ends = words_of(ids, masking())
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [(1, 3), (3, 4), (4, 6), (7, 8), (8, 9)]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("length", [5, 40, 128])
def test_fifteen_percent_are_chosen_and_never_a_special_token(unit: str, length: int) -> None:
    rng, rules = np.random.default_rng(1), masking(masking=unit)
    budget = max(1, round(length * 0.15))
    counts = []
    for _ in range(300):
        ids = sequence(rng, length)
        inputs, chosen = mask_tokens(ids, rules, rng)
        untouched = np.setdiff1d(np.arange(length), chosen)
        assert np.array_equal(inputs[untouched], ids[untouched])
        assert np.all(np.diff(chosen) > 0)
        assert not np.isin(ids[chosen], (CLS, SEP)).any()
        counts.append(len(chosen))
    if unit == "token" or length == 5:  # of five tokens two are words of one piece, or one, or none
        assert max(counts) == budget
    if unit == "token":
        assert min(counts) == budget
    elif length > 5:  # what is left over is less than the longest word there could be room for
        assert np.mean(counts) >= budget - 1
        assert max(counts) <= budget


@pytest.mark.parametrize("unit", UNITS)
def test_special_tokens_that_the_text_spells_out_are_not_chosen(unit: str) -> None:
    ids = np.array([CLS, 5, SEP, MASK, 6, CLS, SEP, 7, 0, 8, MASK, SEP])
    rng, rules = np.random.default_rng(0), masking(masking=unit, masked_lm_prob=0.9)
    assert all(mask_tokens(ids, rules, rng)[1].tolist() == [1, 4, 7, 9] for _ in range(20))
    nothing = np.array([CLS, SEP, SEP])
    assert mask_tokens(nothing, rules, rng)[1].tolist() == []


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (0.5, 0.5), (0.0, 0.3), (1.0, 0.0)])
def test_eighty_ten_ten(unit: str, mask: float, random: float) -> None:
    """Exactly so for other splits, each token drawn apart, and random ones from the whole vocabulary alike."""
    rng, size = np.random.default_rng(2), TOKENIZER.vocab_size
    rules = masking(masking=unit, mask_token_prob=mask, random_token_prob=random, masked_lm_prob=0.5)
    now, before = [], []
    for _ in range(400):
        ids = sequence(rng)
        inputs, chosen = mask_tokens(ids, rules, rng)
        now.append(inputs[chosen])
        before.append(ids[chosen])
    inputs, labels = np.concatenate(now), np.concatenate(before)
    assert close((inputs == MASK).sum(), len(inputs), mask + random / size)
    assert close((inputs == labels).sum(), len(inputs), 1 - mask - random + random / size)
    drawn = inputs[(inputs != MASK) & (inputs != labels)]
    assert all(close(count, len(inputs), random / size) for count in np.bincount(drawn, minlength=size)[:3])
    both = (inputs[1:] == MASK) & (inputs[:-1] == MASK)  # neighbours' draws are independent, in a span as well
    assert abs(both.mean() - mask**2) < 5 / np.sqrt(len(both)) + 2 / size


def test_random_tokens_are_uniform_over_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(3)
    rules = masking(mask_token_prob=0, random_token_prob=1, masked_lm_prob=0.9)
    drawn = np.concatenate([np.take(*mask_tokens(sequence(rng), rules, rng)) for _ in range(400)])
    counts = np.bincount(drawn, minlength=TOKENIZER.vocab_size)
    assert len(counts) == TOKENIZER.vocab_size
    assert all(close(count, len(drawn), 1 / TOKENIZER.vocab_size) for count in counts)


@pytest.mark.parametrize("unit", ["whole-word", "span"])
def test_words_are_masked_whole(unit: str) -> None:
    rng, rules = np.random.default_rng(4), masking(masking=unit)
    for _ in range(200):
        ids = sequence(rng)
        _, chosen = mask_tokens(ids, rules, rng)
        parts = [np.isin(word, chosen) for word in grouped(ids)]
        assert all(part.all() or not part.any() for part in parts)
        left = 19 - len(chosen)
        assert left >= 0
        if unit == "whole-word":  # passed over is only what did not fit
            assert all(len(part) > left for part in parts if not part.any())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 30), st.integers(0, 100))
def test_words_and_spans_keep_to_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    words = set(zip(starts.tolist(), ends.tolist(), strict=True))
    chosen = choose_words(starts, ends, budget, np.random.default_rng(seed))
    assert set(chosen) <= words
    assert len(set(chosen)) == len(chosen)
    spans = sorted(choose_spans(starts, ends, budget, np.array([0.5, 0.8, 1.0]), np.random.default_rng(seed)))
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert {start for start, _ in spans} <= set(starts.tolist())
    assert {end for _, end in spans} <= set(ends.tolist())
    for taken in (chosen, spans):
        assert sum(end - start for start, end in taken) <= budget
        assert bool(taken) == (min(lengths) <= budget)


def test_every_word_is_as_likely_as_another_of_its_length() -> None:
    ends = np.cumsum([1, 2, 1, 3, 1, 2, 1, 9] * 4)
    starts = ends - [1, 2, 1, 3, 1, 2, 1, 9] * 4
    rng = np.random.default_rng(5)
    counts: dict[int, list[int]] = {1: [0] * 80, 2: [0] * 80, 3: [0] * 80}
    for _ in range(3000):
        for start, end in choose_words(starts, ends, 8, rng):
            counts[end - start][start] += 1  # a KeyError: a word of nine does not fit into eight
    for length, places in counts.items():
        alike = [places[start] for start, end in zip(starts, ends, strict=True) if end - start == length]
        assert all(close(count, 3000, float(np.mean(alike)) / 3000) for count in alike)


@pytest.mark.parametrize("longest", [1, 3, 5])
def test_spans_are_of_n_words_with_a_probability_proportional_to_one_over_n(longest: int) -> None:
    rules = masking(masking="span", max_span_words=longest)
    rng = np.random.default_rng(6)
    ends = np.cumsum(rng.integers(1, 4, 400))
    starts = np.append(0, ends[:-1])
    first_words, sizes = [], []
    for _ in range(4000):
        start, end = choose_spans(starts, ends, 20, rules.span_shares, rng)[0]
        first_words.append(int(starts.searchsorted(start)))
        sizes.append(int(ends.searchsorted(end)) - first_words[-1] + 1)
    counts = np.bincount([size for word, size in zip(first_words, sizes, strict=True) if word <= 400 - longest])
    weights = 1 / np.arange(1, longest + 1)
    assert len(counts) == longest + 1
    for count, probability in zip(counts[1:], weights / weights.sum(), strict=True):
        assert close(count, counts.sum(), probability)
    assert close(sum(word < 200 for word in first_words), 4000, 0.5)
    assert {size for word, size in zip(first_words, sizes, strict=True) if word == 399} <= {1}


def test_a_span_ends_with_its_segment() -> None:
    ids = np.array([CLS, 5, 6, SEP, 7, 8, SEP])
    starts, ends = words_of(ids, masking())
    shares, rng = np.array([0.0, 0.0, 1.0]), np.random.default_rng(0)
    seen = {span for _ in range(50) for span in choose_spans(starts, ends, 20, shares, rng)}
    assert seen == {(1, 3), (2, 3), (4, 6), (5, 6)}


def test_a_limit_on_predictions_is_kept() -> None:
    rng = np.random.default_rng(7)
    assert masking().max_predictions == 19
    assert masking(masked_lm_prob=0.4).max_predictions == 51
    rules = masking(max_predictions_per_seq=7)
    assert all(len(mask_tokens(sequence(rng), rules, rng)[1]) == 7 for _ in range(10))


def test_shares_over_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask_token_prob 0.9 and random_token_prob 0.2 .* Lower one"):
        PretrainConfig(mask_token_prob=0.9, random_token_prob=0.2)
