from __future__ import annotations

import threading

import numpy as np
import pytest

from bertfast.text.corpus import Corpus
from bertfast.text.instances import InstanceSource
from bertfast.train.distributed import ALONE
from bertfast.train.loader import prefetched
from bertfast.train.pretrain import PretrainSource
from tests.conftest import TINY_PRETRAIN


@pytest.fixture
def source(corpus: Corpus) -> PretrainSource:
    config = TINY_PRETRAIN.model_copy(update={"micro_batch_tokens": 64})
    return PretrainSource(InstanceSource(corpus, np.arange(5, 40), config), config, ALONE, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_whoever_makes_them(source: PretrainSource, workers: int) -> None:
    loaded = list(prefetched(source.micro_batches, range(3, 9), workers))
    assert [item.step for item in loaded] == [3, 4, 5, 6, 7, 8]
    for step, batches, waited_s in loaded:
        assert waited_s >= 0
        expected = source.micro_batches(step)
        assert len(batches) == len(expected) > 1
        for one, other in zip(batches, expected, strict=True):
            assert np.array_equal(one.batch.input_ids, other.batch.input_ids)
            assert np.array_equal(one.targets["masked_labels"], other.targets["masked_labels"])


def test_a_failure_to_make_a_batch_is_the_loops() -> None:
    def make(step: int) -> list[object]:
        if step == 2:
            raise ValueError("no such step")
        return []

    seen: list[int] = []
    with pytest.raises(ValueError, match="no such step"):
        seen.extend(item.step for item in prefetched(make, range(5), 0))  # type: ignore[arg-type]
    assert seen == [0, 1]


def test_the_next_batch_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(3)]
    for item in prefetched(lambda step: made[step].set() or [], range(3), 0):
        assert all(event.wait(10) for event in made[: item.step + 2])
