"""One engine for several threads: its weights once, and for each thread contexts, a stream and memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from queue import LifoQueue
from types import TracebackType
from typing import Self

from bertfast.backends.predictor import Predictor
from bertfast.backends.served import ServedModel
from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.errors import BackendError


class Pool:
    """Predictors that compute on the GPU at the same time. Use it as a context manager, from any number of threads.

    Example:
        with Pool(open_served(path), 4) as pool, ThreadPoolExecutor(16) as threads:
            def answer(text):
                with pool.predictor() as model:
                    return model.predict([text])
            answers = list(threads.map(answer, texts))

    Args:
        size: how many there are. Each has its own activations, inputs and outputs on the GPU.
    Raises:
        BackendError: the model is no engine, there would be none, or the GPU has no memory for so many.
        EngineError: it was not built for this library and GPU.
    """

    def __init__(self, model: ServedModel, size: int) -> None:
        if model.engine is None:
            raise BackendError(
                f"{model.path} is '{model.kind}', and a pool shares the weights of an engine. Build one first: "
                "bertfast build ONNX --recipe NAME --out DIR"
            )
        if size < 1:
            raise BackendError(
                f"a pool of {size} predictors answers nothing. Give 1 at least, as many as threads compute."
            )
        self._free: LifoQueue[Predictor] = LifoQueue()
        self._closed = False
        with ExitStack() as opened:
            backend = None
            for _ in range(size):
                backend = opened.enter_context(TensorRTBackend(model, model.engine.library, backend))
                self._free.put(Predictor(model, backend))
            self._opened = opened.pop_all()

    @contextmanager
    def predictor(self) -> Iterator[Predictor]:
        """One that no other thread uses meanwhile; waits for it as long as all are in use.

        Raises:
            BackendError: the pool was closed.
        """
        if self._closed:
            raise BackendError("the pool was closed. Ask for predictors before, or open another one.")
        predictor = self._free.get()
        try:
            yield predictor
        finally:
            self._free.put(predictor)

    def close(self) -> None:
        """Let go of all; no thread may use one any longer."""
        self._closed = True
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
