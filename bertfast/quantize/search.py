"""Which products stay as they were: the fewest for which the accuracy holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bertfast.errors import AccuracyError
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.simulate import simulated
from bertfast.text.batch import Batch

WORTH_RESTORING = 0.03
LEAST_INT8_SHARE = 0.9

Notify = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Sensitivity:
    """What a product costs.

    Attributes:
        error: the model's, if this product alone stays as it was.
    """

    quantized: QuantizedProduct
    error: float


@dataclass(frozen=True)
class Chosen:
    """The outcome of a search.

    Attributes:
        quantized: the products in INT8.
        restored: the names of those that stay as they were, in the order of their restoring.
        drop: points of the metric that the model loses on the rows that were searched on; None where there are none.
        error: of the model's outputs on calibration text that was held back, relative.
    """

    quantized: tuple[QuantizedProduct, ...]
    restored: tuple[str, ...]
    drop: float | None
    error: float


@torch.inference_mode()
def outputs_of(model: nn.Module, batches: Sequence[Batch]) -> Iterator[np.ndarray]:
    """All outputs of a model, batch by batch; batches hold no padding."""
    for batch in batches:
        outputs = model(**{name: torch.from_numpy(array) for name, array in batch.arrays.items()})
        yield np.concatenate([values.numpy().ravel() for values in outputs.values()])


class Trial:
    """Measures models some of whose products are in INT8.

    Args:
        model: the source, in float32.
        batches: text that the products were not fitted to.
        drop: the points of the metric that the model loses against the source as it is when this is called; None
            where no rows were given.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], drop: Callable[[], float] | None = None) -> None:
        self.model = model
        self.batches = batches
        self._drop = drop
        self.wanted = list(outputs_of(model, batches))

    def error(self, quantized: Sequence[QuantizedProduct]) -> float:
        """The norm of what is wrong with the outputs, by that of the outputs."""
        with simulated(self.model, quantized):
            pairs = zip(outputs_of(self.model, self.batches), self.wanted, strict=True)
            wrong = sum(float(np.square(found - wanted).sum()) for found, wanted in pairs)
        whole = sum(float(np.square(wanted).sum()) for wanted in self.wanted)
        return float(np.sqrt(wrong / max(whole, 1e-24)))

    def drop(self, quantized: Sequence[QuantizedProduct]) -> float:
        assert self._drop is not None
        with simulated(self.model, quantized):
            return self._drop()


def sensitivities(trial: Trial, quantized: Sequence[QuantizedProduct], notify: Notify) -> list[Sensitivity]:
    """Of each product; the one whose restoring mends most for its weights comes first."""
    error = trial.error(quantized)
    found = []
    for number, one in enumerate(quantized):
        notify(f"without {one.product.name}", number, len(quantized))
        found.append(Sensitivity(one, trial.error([other for other in quantized if other is not one])))
    return sorted(found, key=lambda item: (item.error - error) / item.quantized.weights)


def hold_error(trial: Trial, quantized: Sequence[QuantizedProduct], ranked: Sequence[Sensitivity]) -> Chosen:
    """Without rows to be judged by: products are restored while each mends a part of the error that is worth it, and
    most weights stay in INT8."""
    kept, error, restored = list(quantized), trial.error(quantized), []
    least = LEAST_INT8_SHARE * sum(one.weights for one in quantized)
    for item in ranked:
        fewer = [one for one in kept if one is not item.quantized]
        if sum(one.weights for one in fewer) < least:
            continue
        mended = trial.error(fewer)
        if mended < error * (1 - WORTH_RESTORING):
            kept, error = fewer, mended
            restored.append(item.quantized.product.name)
    return Chosen(tuple(kept), tuple(restored), None, error)


def hold_drop(
    trial: Trial, quantized: Sequence[QuantizedProduct], ranked: Sequence[Sensitivity], max_drop: float, notify: Notify
) -> Iterator[Chosen]:
    """Products restored in the order of their sensitivity: what holds the drop, that with the fewest of them first.

    A runtime rounds otherwise than the simulation does, so that the first need not be the one that holds there.

    Raises:
        AccuracyError: it holds for no number of them.
    """
    drops = []
    for count in range(len(ranked)):
        notify(f"{count} products restored", count, len(ranked))
        restored = [item.quantized for item in ranked[:count]]
        kept = tuple(one for one in quantized if not any(one is other for other in restored))
        drops.append(trial.drop(kept))
        if drops[-1] <= max_drop + 1e-9:
            yield Chosen(kept, tuple(one.product.name for one in restored), drops[-1], trial.error(kept))
    if min(drops) <= max_drop + 1e-9:
        return
    raise AccuracyError(
        f"{quantized[0].format} loses {min(drops):.2f} points at the least, with all but "
        f"{len(ranked) - drops.index(min(drops))} products restored, and {max_drop:g} is the limit. Nothing was "
        "published. Give more calibration text (--calibration), a larger --max-drop, or export in a higher precision."
    )
