"""Worker processes: spawned, deaf to Ctrl-C, and gone when the process that started them is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_pool(workers: int, begin: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool whose workers call `begin(*arguments)` first.

    They are spawned: a fork would copy locks that threads hold, and a CUDA context. A script that makes a pool does
    so under `if __name__ == "__main__":`.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(begin, arguments))


def in_order(pool: Executor, task: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """The results of `task`, in the order of the items; while one is used, the next `ahead` are under way.

    Items are taken as they are needed, so there may be any number of them. When a task fails, or nobody wants more,
    what was not begun never is.
    """
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            with interrupts_held():
                under_way.append(pool.submit(task, item))
            if len(under_way) > ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits meanwhile. Processes that are started here inherit that for good: it is their parent's to handle."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed closes nothing, so its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
