from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.text.batch import group_by_budget, group_by_cost, pad, unpad
from bertfast.text.tokenizer import Encoded

SEQUENCES = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.integers(0, 1)), min_size=1, max_size=20).map(
        lambda pairs: Encoded([a for a, _ in pairs], [b for _, b in pairs])
    ),
    min_size=1,
    max_size=12,
)


@given(SEQUENCES, st.integers(0, 5))
def test_unpad_is_the_inverse_of_pad(sequences: list[Encoded], extra: int) -> None:
    batch = pad(sequences, pad_id=0, length=max(map(len, sequences)) + extra)
    assert unpad(batch) == sequences
    assert batch.real_tokens == sum(map(len, sequences))


def test_a_sequence_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens does not fit into 2"):
        pad([Encoded([1, 2, 3], [0, 0, 0])], 0, 2)


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 2000), st.integers(1, 40))
def test_groups_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, rows: int) -> None:
    groups = list(group_by_budget(lengths, budget, rows))
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or (len(group) <= rows and len(group) * longest <= budget)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200), st.integers(1, 8))
def test_batches_in_order_are_cut_where_the_next_row_would_exceed_the_budget(
    lengths: list[int], budget: int, rows: int
) -> None:
    groups = [group.tolist() for group in group_by_budget(lengths, budget, rows, in_order=True)]
    assert [place for group in groups for place in group] == list(range(len(lengths)))
    for group, following in zip_longest(groups, groups[1:], fillvalue=[]):
        fits = len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
        assert fits
        assert len(group) <= rows
        wider = [*group, *following[:1]]
        assert not following or len(wider) > rows or len(wider) * max(lengths[i] for i in wider) > budget


def computed(groups: list[list[int]], lengths: list[int], batch_cost: int) -> int:
    return sum(batch_cost + len(group) * max(lengths[i] for i in group) for group in groups)


def every_cut(places: list[int]) -> Iterator[list[list[int]]]:
    if not places:
        yield []
    for end in range(1, len(places) + 1):
        for rest in every_cut(places[end:]):
            yield [places[:end], *rest]


@given(st.lists(st.integers(1, 60), max_size=9), st.integers(0, 50), st.integers(60, 200), st.integers(1, 6))
def test_no_cut_of_the_sequences_by_length_costs_less(
    lengths: list[int], batch_cost: int, budget: int, rows: int
) -> None:
    groups = [group.tolist() for group in group_by_cost(lengths, batch_cost, budget, rows)]
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    allowed = (
        cut
        for cut in every_cut(order)
        if all(len(group) <= rows and len(group) * lengths[group[0]] <= budget for group in cut)
    )
    assert all(len(group) <= rows and len(group) * max(lengths[i] for i in group) <= budget for group in groups)
    assert computed(groups, lengths, batch_cost) == min(computed(cut, lengths, batch_cost) for cut in allowed)


def test_a_row_over_the_budget_is_a_batch() -> None:
    assert [group.tolist() for group in group_by_cost([5, 900, 6], 1000, 100, 8)] == [[1], [2, 0]]
