"""A checkpoint's products in INT8 or FP8: calibrated on the user's text, held to the user's metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from bertfast.backends import ServedModel
from bertfast.backends.pytorch import TorchBackend
from bertfast.config import Config
from bertfast.export.dev import DevRows
from bertfast.export.plan import ExportPlan
from bertfast.quantize.product import Format, QuantizedProduct
from bertfast.quantize.search import Chosen, Notify, Sensitivity, Trial, hold_drop, hold_error, sensitivities
from bertfast.quantize.walk import equal_lengths, quantize
from bertfast.text.tokenizer import Encoded

_HELD_BACK = 8  # every eighth text, all of its sequences


class Row(Config):
    """A line of the table that is printed.

    Attributes:
        error: of the product, relative (see `QuantizedProduct`).
        error_without: of the model's outputs on held-back text, if this product alone stayed as it was.
        executed: `int8` or `fp8`, or `restored` to the higher precision.
    """

    product: str
    method: str
    weights: int
    error: float
    error_without: float
    executed: str


class Quantization(Config):
    """How products were quantised, as the manifest holds it.

    Attributes:
        tokens: of the calibration text, without padding, held-back text included.
        error: of the model's outputs on calibration text that was held back, relative.
        drop: points of the metric that were lost on the rows of the search, in torch.
    """

    tokens: int
    quantized_weights: int
    weights: int
    error: float
    drop: float | None
    products: tuple[Row, ...]

    @property
    def share(self) -> float:
        """The share of the encoder's weights that is quantised."""
        return self.quantized_weights / self.weights


def quantize_checkpoint(
    served: ServedModel,
    source: TorchBackend,
    texts: Sequence[Sequence[Encoded]],
    plan: ExportPlan,
    kind: Format,
    dev: DevRows | None,
    notify: Notify,
) -> Iterator[tuple[tuple[QuantizedProduct, ...], Quantization]]:
    """The products that are to be quantised, and the account of how they were found; where a metric is to be held, more
    than once, each time fewer, for runtimes in which it does not hold.

    Args:
        source: the checkpoint in torch, on the CPU.
        texts: the sequences of each calibration text; every eighth text is held back to judge by.
        notify: called with (what is being done, steps done, steps in all).
    Raises:
        AccuracyError: the drop cannot be held.
    """
    model = source.module
    pad_id = served.context.tokenizer.pad_id
    seen = chain(*(text for number, text in enumerate(texts) if number % _HELD_BACK))
    quantized = quantize(model, list(equal_lengths(seen, pad_id)), plan.rounding, kind, notify)
    drop = (lambda: dev.drop(source.run)) if dev else None
    trial = Trial(model, list(equal_lengths(chain(*texts[::_HELD_BACK]), pad_id)), drop)
    ranked = sensitivities(trial, quantized, notify)
    if plan.max_drop is None:
        choices = iter([hold_error(trial, quantized, ranked)])
    else:
        choices = hold_drop(trial, quantized, ranked, plan.max_drop, notify)
    tokens = sum(map(len, chain(*texts)))
    return ((chosen.quantized, _account(tokens, quantized, ranked, chosen)) for chosen in choices)


def _account(
    tokens: int,
    quantized: Sequence[QuantizedProduct],
    ranked: Sequence[Sensitivity],
    chosen: Chosen,
) -> Quantization:
    without = {item.quantized.product.name: item.error for item in ranked}
    rows = tuple(
        Row(
            product=one.product.name,
            method=one.method,
            weights=one.weights,
            error=one.error,
            error_without=without[one.product.name],
            executed="restored" if one.product.name in chosen.restored else one.format,
        )
        for one in quantized
    )
    return Quantization(
        tokens=tokens,
        quantized_weights=sum(one.weights for one in chosen.quantized),
        weights=sum(one.weights for one in quantized),
        error=chosen.error,
        drop=chosen.drop,
        products=rows,
    )
