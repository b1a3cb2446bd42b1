"""Batches ahead of the step that needs them: off the critical path, in order, and never more than a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from bertfast.errors import WorkerError
from bertfast.text.batch import TrainingBatch
from bertfast.workers import in_order, worker_pool

MicroBatches = Sequence[TrainingBatch]
_made_here: Callable[[int], MicroBatches] | None = None


class Loaded(NamedTuple):
    """A step's micro-batches, and how many seconds the loop waited for them."""

    step: int
    batches: MicroBatches
    waited_s: float


def prefetched(make: Callable[[int], MicroBatches], steps: range, workers: int) -> Iterator[Loaded]:
    """The micro-batches of each step; those of the next steps are made while one is computed.

    Args:
        make: micro-batches of a step; with worker processes it is sent to each of them once, by pickle.
        workers: processes that make them, or 0 for a thread of this one.
    """
    pool: Executor
    task: Callable[[int], MicroBatches]
    if workers:
        pool = worker_pool(workers, _remember, make)
        task = _make_here
    else:
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        task = make
    made = in_order(pool, task, steps, ahead=max(1, 2 * workers))
    try:
        for step in steps:
            asked_s = time.perf_counter()
            batches = next(made)
            yield Loaded(step, batches, time.perf_counter() - asked_s)
    except BrokenProcessPool:
        raise WorkerError(
            f"one of the {workers} processes that make batches ended, most likely because memory ran out. "
            "Go on with --resume and fewer of them: --set workers=1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _remember(make: Callable[[int], MicroBatches]) -> None:
    global _made_here
    _made_here = make


def _make_here(step: int) -> MicroBatches:
    assert _made_here is not None
    return _made_here(step)
