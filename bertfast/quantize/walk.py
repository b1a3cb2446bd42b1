"""Calibration: product after product, from the first layer to the last, each with the inputs that it will really get.

Two streams go through the layers side by side: the source model's, which says what is to come out, and that of the
model whose earlier products are in INT8 already, which says what goes in. Batches hold sequences of one length, so
there is no padding that could count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertfast.model.encoder import Visibility
from bertfast.quantize.fit import Rounding, Samples, fit, shuffled
from bertfast.quantize.product import Format, Product, QuantizedProduct, products_of_layer
from bertfast.quantize.simulate import simulated
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Encoded

MAX_TOKENS = 8192
_BATCH_TOKENS = 2048
_LEAST_VARIANCE = 1e-12


@torch.inference_mode()
def quantize(
    model: nn.Module,
    batches: Sequence[Batch],
    rounding: Rounding,
    kind: Format,
    notify: Callable[[str, int, int], object],
) -> list[QuantizedProduct]:
    """Every product of the encoder in INT8 or FP8.

    Args:
        model: in float32 on the CPU, with the encoder at `bert.encoder`; as it was when this returns.
        batches: calibration text, without padding.
        notify: called with (product, products done, products in all).
    """
    layers = list(model.get_submodule("bert.encoder.layer").children())
    source = states = _entering(model, batches)
    done: list[QuantizedProduct] = []
    for number, layer in enumerate(layers):
        pass_through = partial(_through, layer, last=number == len(layers) - 1)
        products = products_of_layer(number)
        right, source = pass_through(source, _PARTS)
        fitted: list[QuantizedProduct] = []
        for product, part, wanted in zip(products, _PARTS, right, strict=True):
            notify(product.name, len(done) + len(fitted), len(layers) * len(products))
            with simulated(model, fitted):
                ((seen,), _) = pass_through(states, [part])
            weight, bias = _parameters(model, product)
            samples = _samples(layer, part, seen, wanted, weight, bias)
            fitted.append(fit(product, samples, weight, bias, rounding, kind))
        with simulated(model, fitted):
            _, states = pass_through(states, [])
        done += fitted
    return done


# What is called with a product's inputs and, where that is another, with the residual.
_PARTS = ("attention.self.key", "attention.output", "intermediate", "output")


def _samples(
    layer: nn.Module, part: str, seen: Sequence[Tensor], wanted: Sequence[Tensor], weight: Tensor, bias: Tensor
) -> Samples:
    """Samples of a product, judged behind the LayerNorm where its outputs reach one token by token.

    There a token's errors are divided by its own size, and a few tokens of BERT are ten times as large as the others.
    """
    attended, end = layer.get_submodule("attention.output.LayerNorm"), layer.get_submodule("output")
    judges: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "attention.self.key": lambda outputs, _: outputs,
        "attention.output": lambda outputs, residual: attended(outputs + residual),
        "intermediate": lambda outputs, residual: end(
            layer.get_submodule("intermediate.activation")(outputs), residual
        ),
        "output": lambda outputs, residual: end.get_submodule("LayerNorm")(outputs + residual),
    }
    some = shuffled(len(seen[0]))[:MAX_TOKENS]
    inputs, residual, source, right_residual = (tensors[i][some] for tensors in (seen, wanted) for i in (0, -1))
    outputs = functional.linear(source, weight, bias)
    importance = torch.ones(len(some))
    if part in ("attention.output", "output"):
        importance = ((outputs + right_residual).var(dim=1) + _LEAST_VARIANCE).rsqrt()
    judge = judges[part]
    return Samples(inputs, outputs, importance, residual, judge(outputs, right_residual), judge)


def equal_lengths(sequences: Iterable[Encoded], pad_id: int) -> Iterator[Batch]:
    """Batches of sequences that are equally long: nothing is padded."""
    by_length: dict[int, list[Encoded]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    for length, rows in sorted(by_length.items()):
        count = max(1, _BATCH_TOKENS // length)
        for start in range(0, len(rows), count):
            yield pad(rows[start : start + count], pad_id)


class _Arguments(NamedTuple):
    """What a layer is called with; `first_only` holds for the last one alone."""

    hidden: Tensor
    visible: Visibility
    first_only: bool


def _entering(model: nn.Module, batches: Sequence[Batch]) -> list[_Arguments]:
    """What the encoder is called with, batch by batch."""
    seen: list[tuple[Any, ...]] = []
    hook = model.get_submodule("bert.encoder").register_forward_pre_hook(lambda _, given: seen.append(given))
    try:
        for batch in batches:
            model(**{name: torch.from_numpy(array) for name, array in batch.arrays.items()})
    finally:
        hook.remove()
    return [_Arguments(*given) for given in seen]


def _through(
    layer: nn.Module, states: Sequence[_Arguments], names: Sequence[str], *, last: bool
) -> tuple[list[tuple[Tensor, ...]], list[_Arguments]]:
    """What [T, H] the named parts of a layer are called with, and what the next layer is called with."""
    seen: list[list[tuple[Tensor, ...]]] = [[] for _ in names]

    def note(_: nn.Module, given: tuple[Tensor, ...], *, of: list[tuple[Tensor, ...]]) -> None:
        of.append(tuple(tensor.flatten(0, -2) for tensor in given))

    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(partial(note, of=of))
        for name, of in zip(names, seen, strict=True)
    ]
    try:
        after = [one._replace(hidden=layer(one.hidden, one.visible, one.first_only and last)) for one in states]
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(map(torch.cat, zip(*of, strict=True))) for of in seen], after


def _parameters(model: nn.Module, product: Product) -> tuple[Tensor, Tensor]:
    """The weights [N, K] and biases [N] of a product's Linears, side by side."""
    linears = [model.get_submodule(name) for name in product.linears]
    weight, bias = (torch.cat([getattr(linear, kind).detach() for linear in linears]) for kind in ("weight", "bias"))
    return weight, bias
