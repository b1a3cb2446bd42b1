from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import bertfast
from bertfast.backends.profiles import by_length
from bertfast.bench.child import Watch
from bertfast.bench.ours import Ours, load
from bertfast.text.batch import Batch, group_by_budget
from tests.conftest import labelled_rows

REQUESTS: list[Any] = [{"text": row["text"]} for row in labelled_rows(30, 5)]


@pytest.fixture
def ours(exported: Path) -> tuple[Ours, list[Batch]]:
    """A candidate, and the batches that its backend is given."""
    candidate = load({"model": str(exported), "backend": "onnxruntime", "threads": 1, "settings": {}})
    batches: list[Batch] = []
    real = candidate.backend.upload

    def upload(batch: Batch) -> Any:
        batches.append(batch)
        return real(batch)

    candidate.backend.upload = upload  # type: ignore[method-assign]
    return candidate, batches


def test_batches_are_of_similar_length_or_in_order_and_the_answers_are_the_same(
    ours: tuple[Ours, list[Batch]], exported: Path
) -> None:
    candidate, batches = ours
    with bertfast.load(exported) as model:
        expected = model.predict(REQUESTS)
    lengths = [length for (length,) in candidate.lengths(REQUESTS)]
    for in_order, batch_size in ((False, 4), (True, 4), (True, None), (False, None)):
        batches.clear()
        watch = Watch(time.perf_counter)
        answers = candidate.answer(REQUESTS, watch, in_order=in_order, batch_size=batch_size)
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
        assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in expected], abs=1e-5)
        given = [length for batch in batches for length in batch.lengths.tolist()]
        assert given == (lengths if in_order else sorted(lengths, reverse=True))
        own_rule = 1 if in_order else len(list(by_length(lengths)))
        assert len(batches) == (8 if batch_size else own_rule)
        assert watch.padded_tokens == sum(batch.input_ids.size for batch in batches)
        assert set(watch.phases_s) == {"tokenize", "upload", "compute", "download", "decode"}


def test_batches_that_are_computed_at_a_time_are_timed_together(exported: Path) -> None:
    candidate = load({"model": str(exported), "backend": "openvino", "threads": 2, "settings": {}})
    with bertfast.load(exported, "openvino") as model:
        expected = model.predict(REQUESTS)
    watch, start_s = Watch(time.perf_counter), time.perf_counter()
    answers = candidate.answer(REQUESTS, watch, in_order=False, batch_size=4)
    elapsed_s = time.perf_counter() - start_s
    assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in expected], abs=1e-5)
    assert set(watch.phases_s) == {"tokenize", "compute", "decode"}
    assert sum(watch.phases_s.values()) < elapsed_s
    lengths = [length for (length,) in candidate.lengths(REQUESTS)]
    assert watch.padded_tokens == sum(len(g) * lengths[g[0]] for g in group_by_budget(lengths, 10**9, 4))


def test_a_phase_ends_when_its_work_is_done(ours: tuple[Ours, list[Batch]]) -> None:
    """A device that only asks for the work: what it takes shows at the next `synchronize`, in the phase that asked."""
    candidate, _ = ours
    now_s, owed_s = 0.0, 0.0

    def costs(seconds: float, method: Any) -> Any:
        def asked(argument: Any) -> Any:
            nonlocal owed_s
            owed_s += seconds
            return method(argument)

        return asked

    def synchronize() -> None:
        nonlocal now_s, owed_s
        now_s, owed_s = now_s + owed_s, 0.0

    backend = candidate.backend
    backend.upload, backend.execute = costs(1, backend.upload), costs(10, backend.execute)  # type: ignore[method-assign]
    candidate.synchronize = synchronize
    watch = Watch(lambda: now_s)
    candidate.answer(REQUESTS, watch, in_order=True, batch_size=10)
    assert watch.phases_s == {"tokenize": 0.0, "upload": 3.0, "compute": 30.0, "download": 0.0, "decode": 0.0}


def test_a_shape_is_computed_without_text(ours: tuple[Ours, list[Batch]]) -> None:
    candidate, batches = ours
    compute = candidate.grid(3, 17)
    compute()
    compute()
    assert [batch.input_ids.shape for batch in batches] == [(3, 17)]
    assert batches[0].real_tokens == 51


def test_settings_of_the_task_reach_the_model(exported: Path) -> None:
    with pytest.raises(bertfast.ConfigError, match="juggle"):
        load({"model": str(exported), "backend": "onnxruntime", "threads": None, "settings": {"juggle": 1}})
