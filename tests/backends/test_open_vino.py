"""Batches beside each other in OpenVINO."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertfast.backends import open_served
from bertfast.backends.open_vino import OpenVinoBackend
from bertfast.backends.protocol import relative_error
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Encoded

openvino = pytest.importorskip("openvino")


def batches(count: int) -> list[Batch]:
    """Each of another shape."""
    return [pad([Encoded([2, *range(5, 6 + n), 3], [0] * (n + 3))] * (1 + n % 3), 0) for n in range(count)]


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


@pytest.mark.parametrize(("count", "beside"), [(3, False), (9, True)])
def test_many_batches_are_computed_beside_each_other_and_few_one_by_one(
    exported: Path, monkeypatch: pytest.MonkeyPatch, count: int, beside: bool
) -> None:
    threads: set[int] = set()
    upload = OpenVinoBackend.upload

    def noted(self: OpenVinoBackend, batch: Batch) -> dict[str, np.ndarray]:
        threads.add(threading.get_ident())
        return upload(self, batch)

    with OpenVinoBackend(open_served(exported), 2) as backend:
        monkeypatch.setattr(OpenVinoBackend, "upload", noted)
        list(backend.stream(batches(count)))
        assert (threading.get_ident() not in threads) == beside
        assert ("_beside" in vars(backend)) == beside  # few batches are not worth loading it for


def test_batches_beside_each_other_are_of_the_model_that_was_loaded(exported: Path, tmp_path: Path) -> None:
    """A deployment may put another graph in the place of one that is being served."""
    copy = Path(shutil.copytree(exported, tmp_path / "served"))
    with OpenVinoBackend(open_served(copy), 2) as backend:
        alone = backend.run(batches(1)[0])
        (copy / "model.onnx").write_bytes(b"another one")
        beside = list(backend.stream(batches(1) * 8))
    assert all(relative_error(outputs["logits"], alone["logits"]) < 1e-5 for outputs in beside)


def test_the_first_array_is_converted_before_there_are_threads(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converting, convert = list[int](), openvino.Tensor

    def noted(*given: Any, **settings: Any) -> Any:
        converting.append(threading.get_ident())
        return convert(*given, **settings)

    monkeypatch.setattr(openvino, "Tensor", noted)
    with OpenVinoBackend(open_served(exported), 2):
        assert converting == [threading.get_ident()]
