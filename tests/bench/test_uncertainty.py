from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.bench.uncertainty import (
    SCORED_RESAMPLES,
    Estimate,
    drop_interval,
    mcnemar_p,
    median,
    paired_ratio,
    percentile,
    proportions_p,
    resampled,
)
from bertfast.errors import DataError

TIMES = st.lists(st.floats(0.1, 100), min_size=1, max_size=12)


def test_the_median_of_five_lies_between_the_least_and_the_greatest() -> None:
    assert median([5.0, 1.0, 3.0, 2.0, 4.0]) == Estimate(3.0, 1.0, 5.0)
    assert median([7.0]) == Estimate(7.0, 7.0, 7.0)


@given(samples=TIMES)
def test_an_interval_is_within_the_samples_and_the_same_every_time(samples: list[float]) -> None:
    value, low, high = median(samples)
    assert value == np.median(samples)
    assert min(samples) <= low <= high <= max(samples)
    assert median(samples) == Estimate(value, low, high)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    source = np.random.default_rng(3)
    found = [median(source.exponential(size=25).tolist()) for _ in range(200)]
    held = np.mean([low <= np.log(2) <= high for _, low, high in found])
    assert 0.90 <= held <= 0.99


def test_a_percentile_is_of_all_samples_and_unsure_where_repeats_differ() -> None:
    alike = percentile([[1.0, 2.0, 3.0, 4.0]] * 4, 50)
    assert alike.value == 2.5
    slow = percentile([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0]] * 2, 50)
    assert slow.high - slow.low > 2 * (alike.high - alike.low)
    assert percentile([[5.0] * 8] * 3, 99) == Estimate(5.0, 5.0, 5.0)


@given(times=TIMES, factor=st.floats(0.1, 10))
def test_what_slows_both_within_a_repeat_leaves_the_ratio_alone(times: list[float], factor: float) -> None:
    assert paired_ratio([factor * time for time in times], times) == pytest.approx((factor,) * 3)


def test_repeats_that_only_one_side_has_do_not_count() -> None:
    assert paired_ratio([2.0, 2.0], [1.0, 1.0, 50.0]) == Estimate(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [(0, 0, 1.0), (10, 0, 2 * 0.5**10), (0, 10, 2 * 0.5**10), (5, 5, 1.0), (3, 1, 0.625)],
)
def test_mcnemar_counts_coin_tosses(lost: int, gained: int, expected: float) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(expected)


def test_fisher_s_tea() -> None:
    assert proportions_p((3, 1), (4, 4)) == pytest.approx(34 / 70)


def share(answers: Sequence[int], golds: Sequence[int]) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.asarray(answers) == np.asarray(golds)))}


def test_a_drop_is_as_unsure_as_its_pairs_say() -> None:
    golds = [1] * 400
    before, after = [1] * 400, [0] * 40 + [1] * 360
    first, second = (resampled(share, "accuracy", answers, golds) for answers in (before, after))
    low, high = drop_interval(0.1, first, second) or (0, 0)
    assert (low + high) / 2 == pytest.approx(0.1)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.1 * 0.9 / 400) ** 0.5, rel=0.2)
    assert drop_interval(0.0, second, second) == (0.0, 0.0)


def test_scoring_is_asked_for_a_limited_number_of_times() -> None:
    calls: list[int] = []

    def count(answers: Sequence[int], golds: Sequence[int]) -> dict[str, float]:
        calls.append(len(answers))
        return {"f1": 0.5}

    assert resampled(count, "f1", [1] * 7, [1] * 7) == [0.5] * SCORED_RESAMPLES
    assert calls == [7] * SCORED_RESAMPLES


def test_rows_that_cannot_be_scored_when_resampled_have_no_interval() -> None:
    def refuse(answers: Sequence[int], golds: Sequence[int]) -> dict[str, float]:
        raise DataError("all rows are of one kind")

    assert resampled(refuse, "f1", [1], [1]) is None
    assert drop_interval(0.0, [0.5, 0.6], None) is None
