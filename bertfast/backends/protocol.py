"""What every runtime looks like from outside, and how closely each must follow the source model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from bertfast.backends.profiles import BATCH_COST_TOKENS, by_length
from bertfast.config import Precision, ShapeProfile
from bertfast.errors import BackendError
from bertfast.text.batch import Batch, Int64

Arrays = dict[str, npt.NDArray[np.float32]]

# not yet measured on a GPU
_ON_A_GPU = {
    Precision.FP32: 1e-4,
    Precision.FP16: 1e-2,
    Precision.BF16: 5e-2,
    Precision.INT8: 1e-1,
    Precision.FP8: 1e-1,
}
_TYPED = (Precision.FP32, Precision.FP16, Precision.BF16)
_TOLERANCE = {
    ("torch", Precision.FP32): 1e-5,
    ("torch", Precision.FP16): 1e-2,
    ("torch", Precision.BF16): 5e-2,
    ("torch-packed", Precision.FP32): 1e-5,
    ("torch-packed", Precision.FP16): 1e-2,
    ("torch-packed", Precision.BF16): 5e-2,
    ("torch-packed", Precision.INT8): 1e-1,
    ("torch-packed", Precision.FP8): 1e-1,
    ("onnxruntime", Precision.FP32): 1e-5,
    ("openvino", Precision.FP32): 1e-5,
    ("openvino", Precision.BF16): 2e-2,
    ("onnxruntime", Precision.FP16): 1e-2,
    # against the same steps in torch: a sum that ends elsewhere in its last bit may round to the next step
    ("onnxruntime", Precision.INT8): 5e-2,
    ("openvino", Precision.INT8): 1e-1,
    ("onnxruntime", Precision.FP8): 1e-1,  # a step of E4M3 is up to an eighth of its value
    **{(name, precision): error for name in ("tensorrt", "tensorrt-rtx") for precision, error in _ON_A_GPU.items()},
    # it has no products in INT8 or FP8 for a graph of QuantizeLinear and DequantizeLinear
    **{("onnxruntime-cuda", precision): _ON_A_GPU[precision] for precision in _TYPED},
    # not fp32: TensorRT multiplies it in TF32, and ONNX Runtime has no switch for that
    **{("onnxruntime-tensorrt", precision): _ON_A_GPU[precision] for precision in (*_TYPED[1:], Precision.INT8)},
}
# The runtime has the formats and no products in them: it multiplies in fp32, and rounds where the graph leaves that.
_EMULATED = {
    ("onnxruntime", Precision.FP16),
    ("onnxruntime", Precision.FP8),
    ("torch-packed", Precision.FP8),
}


class Executed(NamedTuple):
    """A matrix product as a runtime says it executes it.

    Attributes:
        format: such as `fp32`; of both operands where they differ.
        weights: how many weights it multiplies by; 0 where both operands are computed.
    """

    format: str
    weights: int


class Backend(ABC):
    """A model loaded into a runtime.

    `upload`, `execute` and `download` may return before their work is done; `synchronize` waits for it. A measurement
    that leaves it out measures nothing.

    Attributes:
        name: as in `--backend NAME`.
        precision: what the matrix products execute in, as read back from the runtime when the model was loaded.
        emulated: whether it has no kernels for the precision and computes its numbers in fp32: they tell the accuracy,
            and the speed tells nothing.
        overlaps: whether `stream` computes several batches at a time.
        batch_cost_tokens: what a batch costs beside its tokens, in tokens; batches are cut accordingly.
        profiles: the shapes that it takes; any, where there are none.
    """

    name: str
    precision: Precision
    emulated = False
    overlaps = False
    profiles: tuple[ShapeProfile, ...] = ()
    batch_cost_tokens = BATCH_COST_TOKENS

    def group(self, lengths: Sequence[int]) -> Iterator[Int64]:
        """The batches that sequences are computed in, as arrays of their places (see `profiles.by_length`)."""
        return by_length(lengths, self.batch_cost_tokens, self.profiles)

    @abstractmethod
    def upload(self, batch: Batch) -> Any:
        """Bring a batch to where it is computed."""

    @abstractmethod
    def execute(self, inputs: Any) -> Any:
        """Compute the outputs where they are."""

    @abstractmethod
    def download(self, outputs: Any) -> Arrays:
        """The outputs by name as float32 arrays."""

    def computed_tokens(self, batch: Batch) -> int:
        """How many tokens are computed for a batch, padding included."""
        return batch.input_ids.size

    def make_ready(self) -> None:
        """Load now what `stream` would load when it is first called."""

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""

    def close(self) -> None:
        """Let go of the runtime's resources."""

    def run(self, batch: Batch) -> Arrays:
        """upload, execute and download in one."""
        return self.download(self.execute(self.upload(batch)))

    def stream(self, batches: Iterable[Batch]) -> Iterator[Arrays]:
        """The outputs of batch after batch. Where `execute` returns early, the next batch is made and uploaded, and the
        outputs of the last one are used, while one is computed."""
        computed = None
        for batch in batches:
            inputs = self.upload(batch)
            done = None if computed is None else self.download(computed)
            computed = self.execute(inputs)
            if done is not None:
                yield done
        if computed is not None:
            yield self.download(computed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hold_precision(self, executed: Iterable[Executed], wanted: Precision, int8_weights: int = 0) -> None:
        """Set `precision` and `emulated`; raise BackendError unless every matrix product executes in that precision.

        Args:
            executed: what the runtime says of its matrix products.
            int8_weights: how many weights must be multiplied in INT8, where that is wanted: the others may not be.
        """
        products = list(executed)
        self.precision = wanted
        if wanted is Precision.INT8:
            counted = sum(product.weights for product in products if product.format == "int8")
            if counted < int8_weights:
                raise BackendError(
                    f"{self.name} executes {counted:,} weights in int8, and {int8_weights:,} were promised. The rest "
                    "would cost accuracy without its speed, so it is not used. Use another --backend, or export in "
                    "bf16 or fp32."
                )
            return
        formats = {product.format for product in products}
        self.emulated = formats == {"fp32"} and (self.name, wanted) in _EMULATED
        if formats != {wanted.value} and not self.emulated:
            found = ", ".join(sorted(formats)) or "no matrix product at all"
            raise BackendError(
                f"{self.name} was to execute the matrix products in {wanted.value}, and says that it executes {found}. "
                "Its numbers would not be what their label says, so it is not used. Use another --backend, or export "
                "in a precision that this machine multiplies in ('bertfast doctor' tells)."
            )


def tolerance(backend: str, precision: Precision) -> float:
    """The largest relative error against the fp32 source that a backend may have in a precision."""
    return _TOLERANCE[backend, precision]


def precisions(backend: str) -> tuple[Precision, ...]:
    """The precisions that a backend executes."""
    return tuple(precision for name, precision in _TOLERANCE if name == backend)


def relative_error(
    actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], scale: float | None = None
) -> float:
    """Largest absolute difference over `scale`, by default the largest expected magnitude; infinite where a number
    is not finite."""
    if not np.isfinite(actual).all():
        return float("inf")
    scale = scale or float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual.astype(np.float64) - expected).max()) / scale
