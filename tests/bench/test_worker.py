from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bertfast.bench.worker import CHILD, Worker
from bertfast.errors import BackendError

FAKE = Path(__file__).with_name("fake.py")
REQUESTS = [{"text": "a"}, {"text": "ab"}]
OFFLINE = {"in_order": False, "batch_size": None}


@contextmanager
def working(python: Path | None = None, **options: Any) -> Iterator[Worker]:
    worker = Worker(FAKE, python, threads=1)
    try:
        worker.ask("load", 60, job={"options": options, "labels": ["a", "b"]})
        worker.ask("data", 60, requests=REQUESTS)
        yield worker
    finally:
        worker.stop()


def test_a_backend_that_sleeps_a_known_time_is_measured_within_two_percent(tmp_path: Path) -> None:
    """Held against the backend's own clock, so that a busy machine, on which a sleep is longer, changes nothing."""
    with working(log=str(tmp_path / "log")) as worker:
        runs = [worker.ask("offline", 60, **OFFLINE) for _ in range(5)]
        latencies_ms = worker.ask("single-stream", 60, indices=[0, 1, 0, 1, 0], batch_size=None)
    slept_s = list(map(float, (tmp_path / "log").read_text().split()))
    assert len(slept_s) == 10
    assert min(slept_s) >= 0.05
    elapsed_s = [run["elapsed_s"] for run in runs] + [latency_ms / 1e3 for latency_ms in latencies_ms]
    errors = [measured / slept - 1 for measured, slept in zip(elapsed_s, slept_s, strict=True)]
    assert statistics.median(errors) < 0.02
    assert min(errors) > 0
    phases = [run["phases_s"]["compute"] / slept - 1 for run, slept in zip(runs, slept_s, strict=False)]
    assert 0 < statistics.median(phases) < 0.02


def test_noise_on_standard_output_disturbs_nothing() -> None:
    with working() as worker:
        answers = worker.ask("predict", 60, batch_size=None)
    assert [answer["label"] for answer in answers] == ["b", "a"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("memory", r"out of memory during 'offline': MemoryError \(fake.py, line \d+\)"),
        ("gpu memory", r"out of memory during 'offline': RuntimeError: CUDA out of memory"),
        ("killed", r"was killed during 'offline' \(signal 9\), probably because memory ran out"),
        ("abort", r"died during 'offline' \(exit status 7\): a library says why it gives up"),
        ("exit", r"died during 'offline' \(exit status 3\)"),
    ],
)
def test_how_a_candidate_fails_is_said(by: str, message: str) -> None:
    with working(fails_at=2, by=by) as worker:
        assert worker.ask("offline", 60, **OFFLINE)["elapsed_s"] > 0
        with pytest.raises(BackendError, match=message):
            worker.ask("offline", 60, **OFFLINE)


def test_a_candidate_that_hangs_is_killed() -> None:
    with working(fails_at=1, by="hang") as worker:
        with pytest.raises(BackendError, match=r"no answer to 'offline' within 0\.2 s, so the process was killed"):
            worker.ask("offline", 0.2, **OFFLINE)
        assert worker._process.wait(60) == -9
        with pytest.raises(BackendError, match="signal 9"):
            worker.ask("offline", 60, **OFFLINE)


def test_a_candidate_that_cannot_be_loaded_says_why() -> None:
    with (
        pytest.raises(
            BackendError, match=r"'load' failed: ValueError: this model cannot be loaded \(fake.py, line \d+\)"
        ),
        working(fails_at="load"),
    ):
        pass
    absent = Worker(FAKE.with_name("absent.py"))
    with pytest.raises(BackendError, match="FileNotFoundError"):
        absent.ask("load", 60, job={})
    absent.stop()


def test_a_busy_process_ends_with_the_one_that_asked() -> None:
    """The pipe closes in the midst of a request that would take ten minutes."""
    requests = [
        {"do": "load", "job": {"labels": ["a"], "options": {"fails_at": 1, "by": "hang"}}},
        {"do": "data", "requests": REQUESTS},
        {"do": "predict", "batch_size": None},
    ]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    orphan = subprocess.run(
        [sys.executable, "-P", CHILD, FAKE], input=lines, text=True, capture_output=True, timeout=120
    )
    assert orphan.returncode == 1
    assert orphan.stdout.count('"ok": true') == 2


def test_a_candidate_runs_in_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(FAKE.parents[2]))
    python = tmp_path / ".venv" / "bin" / "python"
    worker = Worker(FAKE, python)
    facts = worker.ask("load", 60, job={"options": {}, "labels": []})
    worker.stop()
    assert Path(facts["libraries"]["prefix"]).resolve() == (tmp_path / ".venv").resolve()
    assert os.environ["PYTHONPATH"] not in facts["libraries"]["path"]
