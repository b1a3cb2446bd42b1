from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.backends.profiles import MAX_BATCH_SEQUENCES, _home, as_given, choose_profile, group_by_profile
from bertfast.config import ShapeProfile
from bertfast.errors import ProfileError

SHORT = ShapeProfile(batch=(1, 16, 16), length=(16, 16, 16))
SINGLE = ShapeProfile(batch=(1, 1, 4), length=(1, 64, 512))
FULL = ShapeProfile(batch=(5, 32, 64), length=(1, 128, 512))


@pytest.mark.parametrize(
    ("rows", "length", "wanted"),
    [(8, 16, SHORT), (1, 15, SINGLE), (4, 40, SINGLE), (5, 40, FULL), (64, 512, FULL), (17, 16, FULL)],
)
def test_a_batch_goes_where_it_is_padded_the_least(rows: int, length: int, wanted: ShapeProfile) -> None:
    profiles = [SHORT, SINGLE, FULL]
    assert profiles[choose_profile(profiles, rows, length)] == wanted


def test_less_padding_counts_before_a_nearer_best_shape() -> None:
    long = ShapeProfile(batch=(1, 1, 16), length=(32, 32, 32))
    short = ShapeProfile(batch=(1, 2, 2), length=(8, 64, 64))
    assert choose_profile([long, short], 1, 8) == 1
    assert [len(group) for group in group_by_profile([8] * 4, [long, short], 8)] == [2, 2]


def test_of_equal_padding_the_nearest_best_shape_wins() -> None:
    near = ShapeProfile(batch=(1, 8, 32), length=(1, 128, 512))
    far = ShapeProfile(batch=(1, 32, 32), length=(1, 512, 512))
    assert choose_profile([far, near], 8, 100) == 1
    assert choose_profile([far, near], 30, 500) == 0


@given(st.lists(st.sampled_from([1, 7, 16, 40]), min_size=1, max_size=64))
def test_a_full_batch_is_computed_by_the_profile_that_it_was_made_for(lengths: list[int]) -> None:
    """Of two profiles as long and as wide, the one with the nearer best shape makes the batches and takes them."""
    narrow = ShapeProfile(batch=(1, 1, 8), length=(1, 512, 512))
    near = ShapeProfile(batch=(1, 8, 8), length=(1, 16, 64))
    for profiles in ([narrow, near], [near, narrow]):
        homes = {length: profiles[_home(profiles, length)] for length in lengths}
        assert all(profiles[choose_profile(profiles, 8, length)] == home for length, home in homes.items())


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (
            65,
            512,
            r"batch 65x512 exceeds the engine's profiles .* Split it to 64, or raise batch and run 'bertfast build'",
        ),
        (1, 513, "Cut its texts to 512 tokens, or raise length"),
        (0, 8, "a batch of no sequences"),
    ],
)
def test_what_no_profile_holds_is_refused_with_the_way_out(rows: int, length: int, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        choose_profile([SHORT, SINGLE, FULL], rows, length)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"batch 2x16 .* profile 5\.\.64 x 1\.\.512\. Lower the least batch"):
        choose_profile([FULL], 2, 16)


@given(st.lists(st.integers(1, 512), max_size=300), st.integers(0, 64))
def test_every_sequence_is_in_a_batch_that_a_profile_holds(lengths: list[int], batch_cost: int) -> None:
    profiles = [SHORT, SINGLE, FULL]
    groups = list(group_by_profile(lengths, profiles, batch_cost))
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    for group in groups:
        choose_profile(profiles, len(group), max(lengths[place] for place in group))


def test_buckets_are_not_mixed() -> None:
    buckets = [ShapeProfile(batch=(1, 4, 4), length=(length,) * 3) for length in (8, 32)]
    groups = [group.tolist() for group in group_by_profile([5, 30, 8, 9, 2, 3, 4], buckets, 8)]
    assert sorted(map(len, groups)) == [1, 2, 4]
    assert {1, 3} in map(set, groups)


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(ProfileError, match="batch 1x600 exceeds .* Cut its texts to 512"):
        list(group_by_profile([5, 600], [SINGLE], 0))


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_batches_in_the_order_given_fit_a_profile(lengths: list[int]) -> None:
    for profiles in ([SINGLE], [SHORT, SINGLE]):
        groups = [group.tolist() for group in as_given(lengths, profiles)]
        assert list(chain(*groups)) == list(range(len(lengths)))
        for group in groups:
            choose_profile(profiles, len(group), max(lengths[place] for place in group))


def test_batches_in_the_order_given_are_large_where_nothing_bounds_them() -> None:
    assert [len(group) for group in as_given([2] * 300)] == [MAX_BATCH_SEQUENCES, 300 - MAX_BATCH_SEQUENCES]
