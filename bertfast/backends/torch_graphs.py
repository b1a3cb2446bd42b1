"""CUDA graphs of torch: the kernels of a shape are recorded once and then launched together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

MAX_GRAPHS = 64
_WARM_UPS = 3

Outputs = Mapping[str, Tensor]
Shape = TypeVar("Shape", bound=Hashable)


class Replayed(Generic[Shape]):
    """A function of a tensor and of what says its shapes; on a GPU a shape that comes again has a graph.

    From then on the function reads a tensor of the shape's own, which every call fills. Outputs hold until the next
    call: all graphs compute in the same memory, one at a time. What was not used for the longest time goes first.
    """

    def __init__(self, function: Callable[[Tensor, Shape], Outputs]) -> None:
        self._function = function
        self._seen: set[Shape] = set()
        self._held: dict[Shape, tuple[Tensor, Callable[[], Outputs]]] = {}
        self._pool: Any = None  # an opaque handle

    def __call__(self, values: Tensor, shape: Shape) -> Outputs:
        if shape not in self._seen:
            self._seen.add(shape)
            return self._function(values, shape)
        if shape not in self._held:
            if len(self._held) == MAX_GRAPHS:
                del self._held[next(iter(self._held))]
            own = values.clone()
            call: Callable[[], Outputs] = partial(self._function, own, shape)
            if values.is_cuda:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                call = _captured(call, self._pool)
            self._held[shape] = own, call
        self._held[shape] = own, compute = self._held.pop(shape)
        own.copy_(values)
        return compute()


def _captured(compute: Callable[[], Outputs], pool: Any) -> Callable[[], Outputs]:
    """What launches the graph of `compute`, whose libraries have their workspaces by then."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = compute()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
