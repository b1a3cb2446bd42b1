"""The plan of shapes: no choice of buckets leaves less padding, and its figures are those of a plain count."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.backends import open_served
from bertfast.backends.profiles import by_length, choose_profile
from bertfast.config import ModelConfig
from bertfast.engine.planner import LENGTH_STEP, bucket_lengths, plan_shapes, sequence_lengths
from bertfast.text import tokenizer as tokenization
from bertfast.text.labelled import Columns
from tests.conftest import TINY_SHAPE, sentence, write_checkpoint, write_rows

HISTOGRAMS = st.dictionaries(st.integers(1, 60), st.integers(1, 50), min_size=1, max_size=8)


def padded_tokens(lengths: Counter[int], ends: tuple[int, ...]) -> int:
    """A plain count: each sequence takes the shortest length that holds it."""
    return sum(count * min(end for end in ends if end >= length) for length, count in lengths.items())


def least_padded(lengths: Counter[int], buckets: int) -> int:
    """The best of every choice there is."""
    *others, longest = sorted(lengths)
    choices = (chosen for size in range(buckets) for chosen in combinations(others, size))
    return min(padded_tokens(lengths, (*chosen, longest)) for chosen in choices)


@given(HISTOGRAMS, st.integers(1, 9))
def test_no_choice_of_buckets_leaves_less_padding(histogram: dict[int, int], buckets: int) -> None:
    lengths = Counter(histogram)
    found = bucket_lengths(sorted(lengths), [lengths[length] for length in sorted(lengths)], buckets)
    assert len(found) == min(buckets, len(lengths))
    assert list(found) == sorted(set(found))
    assert padded_tokens(lengths, found) == least_padded(lengths, buckets)


@given(st.lists(st.integers(1, 61), min_size=1, max_size=60), st.integers(1, 5))
def test_every_sequence_lies_in_the_bucket_that_it_is_padded_to(lengths: list[int], buckets: int) -> None:
    plan = plan_shapes(lengths, 61, buckets=buckets, batch_tokens=256, max_batch=16)
    ends = tuple(bucket.length for bucket in plan.buckets)
    assert all(end % LENGTH_STEP == 0 or end == 61 for end in ends)
    assert sum(bucket.sequences for bucket in plan.buckets) == len(lengths)
    assert plan.real_tokens == sum(lengths)
    assert plan.padded.one_profile == len(lengths) * ends[-1]
    assert plan.padded.buckets == padded_tokens(Counter(lengths), ends) <= plan.padded.one_profile


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 400), st.integers(1, 16))
def test_profiles_hold_every_length_within_the_budget(lengths: list[int], batch_tokens: int, max_batch: int) -> None:
    plan = plan_shapes(lengths, 96, buckets=3, batch_tokens=batch_tokens, max_batch=max_batch)
    assert plan.profiles[-1].length[2] == 96
    for bucket, profile in zip(plan.buckets, plan.profiles, strict=False):
        assert profile.length == (bucket.length,) * 3
    for profile in plan.profiles:
        least, _, rows = profile.batch
        assert least == 1
        assert rows <= max_batch
        assert rows == 1 or rows * profile.length[2] <= batch_tokens
        assert rows == max_batch or (rows + 1) * profile.length[2] > batch_tokens


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 4), st.integers(1, 8))
def test_batches_compute_the_tokens_that_the_plan_says(lengths: list[int], buckets: int, max_batch: int) -> None:
    """The predictor groups and the runtime pads by the profiles of the plan: nothing is computed beyond its figure."""
    plan = plan_shapes(lengths, 96, buckets=buckets, batch_tokens=256, max_batch=max_batch)
    computed = 0
    for group in by_length(lengths, profiles=plan.profiles):
        longest = max(lengths[place] for place in group)
        profile = plan.profiles[choose_profile(plan.profiles, len(group), longest)]
        computed += len(group) * max(longest, profile.length[0])
    assert computed == plan.padded.buckets


def test_the_figures_of_a_plan() -> None:
    plan = plan_shapes([3, 9, 9, 17, 40, 41, 60], 128, buckets=3, batch_tokens=256, max_batch=8)
    assert [(bucket.length, bucket.sequences, bucket.real_tokens) for bucket in plan.buckets] == [
        (16, 3, 21),
        (40, 2, 57),
        (64, 2, 101),
    ]
    assert [(profile.batch, profile.length) for profile in plan.profiles] == [
        ((1, 8, 8), (16, 16, 16)),
        ((1, 6, 6), (40, 40, 40)),
        ((1, 4, 4), (64, 64, 64)),
        ((1, 2, 2), (65, 128, 128)),
    ]
    assert (plan.padded.one_profile, plan.padded.buckets) == (7 * 64, 3 * 16 + 2 * 40 + 2 * 64)
    assert plan.waste(plan.padded.buckets) == pytest.approx(1 - 179 / 256)
    assert plan.saved == pytest.approx((448 - 179) / (256 - 179))


def test_without_padding_the_saving_is_infinite() -> None:
    assert plan_shapes([8, 16], 16, buckets=2, batch_tokens=64, max_batch=8).saved == float("inf")


def test_lengths_are_those_that_the_model_gets(classifier: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [sentence(rng) * repeats for repeats in (1, 2, 40)]
    file = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    served = open_served(classifier)
    lengths = sequence_lengths(served, file, Columns())
    assert lengths == [len(one) for one in served.context.tokenizer.encode([(text, None) for text in texts], 64)]
    assert lengths[2] == TINY_SHAPE["max_position_embeddings"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "file", "saved"),
    [("classify", "sst2/dev.tsv", 5.0), ("classify", "sst2/train.tsv", 9.6), ("qa", "squad/dev.json", 7.1)],
)
def test_the_figures_of_real_texts_are_those_of_a_plain_count(
    data_folder: Path, tmp_path: Path, task: str, file: str, saved: float
) -> None:
    tokenizer = tokenization.load(data_folder / "vocab" / "bert-base-uncased-vocab.txt")
    shape = ModelConfig(**TINY_SHAPE | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 384})
    served = open_served(
        write_checkpoint(tmp_path / "model", task, shape, tokenizer, ("0", "1") if task == "classify" else ())
    )
    lengths = sequence_lengths(served, data_folder / file, Columns())
    plan = plan_shapes(lengths, 384, buckets=4, batch_tokens=4096, max_batch=256)
    rounded = Counter(-(-length // LENGTH_STEP) * LENGTH_STEP for length in lengths)
    assert plan.padded.one_profile == len(lengths) * max(rounded)
    assert plan.padded.buckets == padded_tokens(Counter(lengths), tuple(bucket.length for bucket in plan.buckets))
    assert plan.padded.buckets == least_padded(rounded, 4)
    assert plan.waste(plan.padded.buckets) == 1 - sum(lengths) / plan.padded.buckets
    assert round(plan.saved, 1) == saved
