from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.config import PretrainConfig
from bertfast.text.batch import IGNORE_INDEX
from bertfast.text.corpus import Corpus
from bertfast.text.instances import Instance, InstanceSource
from bertfast.text.packing import Layout, Limits, Sizes, assign, choose_layout, pack, sizes_of

LENGTH = 48
LIMITS = Limits(LENGTH, 7)


@pytest.fixture(scope="module")
def instances(corpus: Corpus) -> list[Instance]:
    config = PretrainConfig(max_length=LENGTH, short_seq_prob=0.3)
    source = InstanceSource(corpus, np.arange(corpus.num_documents), config)
    return [source.at(place) for place in range(200)]


def layout_for(instances: list[Instance], row_tokens: int | None, batch_size: int = 32) -> Layout:
    return choose_layout(
        sizes_of(instances), LIMITS, batch_size=batch_size, row_tokens=row_tokens, micro_batch_tokens=1024
    )


@given(
    st.lists(st.integers(3, LENGTH), min_size=1, max_size=80),
    st.integers(1, 6),
    st.sampled_from([LENGTH, 64, 100]),
    st.integers(1, 9),
    st.integers(7, 40),
)
def test_every_sequence_is_laid_once_and_no_limit_is_exceeded(
    lengths: list[int], rows: int, row_tokens: int, sequences: int, predictions: int
) -> None:
    tokens = np.array(lengths)
    sizes = Sizes(tokens, np.maximum(1, tokens * 15 // 100))
    layout = Layout(rows, row_tokens, sequences, predictions, LENGTH)
    batches = assign(sizes, layout)
    assert sorted(index for batch in batches for row in batch for index in row) == list(range(len(lengths)))
    for batch in batches:
        members = [index for row in batch for index in row]
        assert len(batch) <= rows
        assert all(tokens[row].sum() <= row_tokens for row in batch)
        assert len(members) <= sequences
        assert sizes.masked[members].sum() <= predictions


@pytest.mark.parametrize("row_tokens", [LENGTH, 2 * LENGTH, None])
def test_packing_loses_no_token(instances: list[Instance], row_tokens: int | None) -> None:
    layout = layout_for(instances, row_tokens)
    found = []
    for item in pack(instances[:32], layout, pad_id=0):
        packing, targets = item.batch.packing, item.targets
        assert packing is not None
        batch = item.batch
        ids, mask, types = batch.input_ids.ravel(), batch.attention_mask.ravel(), batch.token_type_ids.ravel()
        original = ids.copy()
        filled = targets["masked_labels"] != IGNORE_INDEX
        original[targets["masked_positions"][filled]] = targets["masked_labels"][filled]
        bounds = packing.cu_seqlens
        assert bounds[0] == 0
        assert bounds[-1] == layout.tokens
        assert (np.diff(bounds) >= 0).all()
        assert np.diff(bounds).max() <= LENGTH
        assert not np.setdiff1d(np.arange(0, layout.tokens, layout.row_tokens), bounds).size  # no sequence leaves a row
        for start, label in zip(packing.sequence_starts, targets["next_sentence_labels"], strict=True):
            if label != IGNORE_INDEX:
                end = bounds[np.searchsorted(bounds, start, side="right")]
                assert mask[start:end].all()
                assert packing.position_ids.ravel()[start:end].tolist() == list(range(end - start))
                found.append((original[start:end].tolist(), types[start:end].tolist(), int(label)))
    expected = []
    for instance in instances[:32]:
        original = instance.input_ids.copy()
        original[instance.masked_positions] = instance.masked_labels
        expected.append((original.tolist(), instance.token_type_ids.tolist(), instance.next_sentence_label))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("row_tokens", [2 * LENGTH, None])
def test_shapes_are_the_same_for_every_step(instances: list[Instance], row_tokens: int | None) -> None:
    layout = layout_for(instances, row_tokens)
    shapes = {
        tuple(array.shape for array in (*item.batch.arrays.values(), *item.targets.values(), *boundaries(item)))
        for first in (0, 32, 64)
        for item in pack(instances[first:][:32], layout, pad_id=0)
    }
    assert len(shapes) == 1


def boundaries(item):  # type: ignore[no-untyped-def]
    return item.batch.packing.position_ids, item.batch.packing.sequence_starts, item.batch.packing.cu_seqlens


@pytest.mark.parametrize(("row_tokens", "efficiency"), [(2 * LENGTH, 0.88), (None, 0.92)])
def test_little_padding_is_left(instances: list[Instance], row_tokens: int | None, efficiency: float) -> None:
    padded = np.mean([len(instance.input_ids) for instance in instances]) / LENGTH
    layout = layout_for(instances, row_tokens, batch_size=100)
    batches = [item for first in (0, 100) for item in pack(instances[first : first + 100], layout, pad_id=0)]
    real, computed = sum(item.batch.real_tokens for item in batches), len(batches) * layout.tokens
    assert real / computed > efficiency > padded
