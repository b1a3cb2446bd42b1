"""Batches beside each other in OpenVINO."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bertfast.backends import open_served
from bertfast.backends.open_vino import OpenVinoBackend, in_order
from bertfast.backends.protocol import Arrays, relative_error
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Encoded

pytest.importorskip("openvino")


def batches(count: int) -> list[Batch]:
    """Each of another shape."""
    return [pad([Encoded([2, *range(5, 6 + n), 3], [0] * (n + 3))] * (1 + n % 3), 0) for n in range(count)]


def number(batch: Batch) -> Arrays:
    return {"length": np.array([batch.input_ids.shape[1]], np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stream_has_the_outputs_of_each_batch_in_their_order(exported: Path, threads: int) -> None:
    given = batches(9)
    with OpenVinoBackend(open_served(exported), threads) as backend:
        assert backend.overlaps == (threads > 1)
        for count in (0, 1, 9):
            found = list(backend.stream(iter(given[:count])))
            assert len(found) == count
            for batch, outputs in zip(given, found, strict=False):
                alone = backend.run(batch)
                assert outputs["logits"].shape == (len(batch), 3)
                assert relative_error(outputs["logits"], alone["logits"]) < 1e-5


def test_batches_are_computed_at_a_time_and_no_more_are_made_than_needed() -> None:
    together, made = threading.Barrier(2, timeout=30), 0

    def asked() -> Iterator[Batch]:
        nonlocal made
        for batch in batches(6):
            made += 1
            yield batch

    def run(batch: Batch) -> Arrays:
        together.wait()  # one alone would wait for ever
        return number(batch)

    stream = in_order(run, 2, asked())
    assert next(stream)["length"] == 3
    assert made == 4
    assert [int(outputs["length"][0]) for outputs in stream] == [4, 5, 6, 7, 8]


def test_what_fails_beside_others_is_raised_in_its_place() -> None:
    def run(batch: Batch) -> Arrays:
        if batch.input_ids.shape[1] == 4:
            raise RuntimeError("no such shape")
        return number(batch)

    stream = in_order(run, 2, batches(4))
    assert next(stream)["length"] == 3
    with pytest.raises(RuntimeError, match="no such shape"):
        next(stream)


def test_a_stream_that_is_left_early_does_not_begin_what_lies_ready() -> None:
    begun, go_on = list[int](), threading.Event()

    def run(batch: Batch) -> Arrays:
        begun.append(batch.input_ids.shape[1])
        if len(begun) > 1:
            assert go_on.wait(timeout=30)
        return number(batch)

    stream = in_order(run, 1, batches(50))
    next(stream)
    threading.Timer(0.3, go_on.set).start()
    stream.close()  # type: ignore[attr-defined]
    assert begun == [3, 4]


def test_batches_beside_each_other_are_of_the_model_that_was_loaded(exported: Path, tmp_path: Path) -> None:
    """A deployment may put another graph in the place of one that is being served."""
    copy = Path(shutil.copytree(exported, tmp_path / "served"))
    with OpenVinoBackend(open_served(copy), 2) as backend:
        alone = backend.run(batches(1)[0])
        (copy / "model.onnx").write_bytes(b"another one")
        beside = list(backend.stream(batches(1) * 8))
    assert all(relative_error(outputs["logits"], alone["logits"]) < 1e-5 for outputs in beside)
