"""The work on chunks spread over a Ray cluster by Ray Data: the same chunks, the same function, the same bytes.

The nodes read the inputs themselves, so these lie where every node finds them under the same path. What a chunk
carries as text (`.gz`, for one) is read by the process that starts the build and sent along. The corpus is written
by that process.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bertfast.errors import BertfastError, WorkerError
from bertfast.text.build import Job, Part, tokenize_chunk
from bertfast.text.chunks import Chunk, Piece
from bertfast.text.documents import FileRange

# A window of chunks is one dataset: long enough that its start and its end do not count, short enough that what is
# carried as text fits into memory.
_WINDOW_CHUNKS = 4096
_WINDOW_CHARS = 1 << 28


def in_ray(chunks: Iterable[Chunk], job: Job, *, workers: int | None = None) -> Generator[Part, None, None]:
    """Work on chunks in a cluster: the one that is connected to or found, or else one on this machine.

    Args:
        workers: tasks at a time; as many as the cluster has cores when not given.
    Raises:
        WorkerError: a task failed for good; Ray tries again where a node or a process was lost.
    """
    with _ordered_ray() as ray:
        for window in _windows(chunks):
            rows = [{"place": place, "chunk": pickle.dumps(chunk)} for place, chunk in enumerate(window)]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            dataset = dataset.map(_worker(job), num_cpus=1, concurrency=workers)
            try:
                for place, row in enumerate(dataset.iter_rows()):
                    assert row["place"] == place
                    yield _part_of(row["result"])
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"Ray gave up on a chunk: {str(error).splitlines()[-1]} "
                    "Start again when the cluster is well: the build goes on from what is done."
                ) from error


def _worker(job: Job) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def work(row: dict[str, Any]) -> dict[str, Any]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        result: Part | BertfastError
        try:
            result = tokenize_chunk(job, pickle.loads(row["chunk"]))
        except BertfastError as error:  # as a value: raised, it would come back inside an error of Ray's
            result = error
        return {"place": row["place"], "result": pickle.dumps(result)}

    return work


def _part_of(pickled: bytes) -> Part:
    result = pickle.loads(pickled)
    if isinstance(result, BertfastError):
        raise result
    assert isinstance(result, Part)
    return result


def _windows(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in groups, with paths that do not depend on where a process was started."""
    window: list[Chunk] = []
    carried = 0
    for chunk in chunks:
        window.append(replace(chunk, pieces=tuple((file, _absolute(piece)) for file, piece in chunk.pieces)))
        carried += sum(len(piece) for _, piece in chunk.pieces if isinstance(piece, str))
        if len(window) == _WINDOW_CHUNKS or carried >= _WINDOW_CHARS:
            yield window
            window, carried = [], 0
    if window:
        yield window


def _absolute(piece: Piece) -> Piece:
    return replace(piece, path=piece.path.absolute()) if isinstance(piece, FileRange) else piece


@contextmanager
def _ordered_ray() -> Iterator[Any]:
    """The package, connected, with results in the order of the rows; everything is left as it was found."""
    import ray
    import ray.data
    import ray.exceptions

    connected = ray.is_initialized()
    if not connected:
        ray.init(include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    before = (context.execution_options.preserve_order, context.enable_progress_bars)
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield ray
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if not connected:
            ray.shutdown()
