"""Calibration: product after product, from the first layer to the last, each with the inputs that it will really get.

Two streams go through the layers side by side: the source model's, which says what is to come out, and that of the
model whose earlier products are in INT8 already, which says what goes in. Batches hold sequences of one length, so
there is no padding that could count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertfast.model.encoder import Visibility
from bertfast.quantize.fit import Rounding, Samples, fit
from bertfast.quantize.product import Product, QuantizedProduct, products_of_layer
from bertfast.quantize.simulate import simulated
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Encoded

MAX_TOKENS = 8192
_BATCH_TOKENS = 2048


@torch.inference_mode()
def quantize(
    model: nn.Module, batches: Sequence[Batch], rounding: Rounding, notify: Callable[[str, int, int], object]
) -> list[QuantizedProduct]:
    """Every product of the encoder in INT8.

    Args:
        model: in float32, with the encoder at `bert.encoder`; as it was when this returns.
        batches: calibration text, without padding.
        notify: called with (product, products done, products in all).
    """
    layers = list(model.get_submodule("bert.encoder.layer").children())
    source = states = _entering(model, batches)
    done: list[QuantizedProduct] = []
    for number, layer in enumerate(layers):
        pass_through = partial(_through, layer, last=number == len(layers) - 1)
        products = products_of_layer(number)
        within = len(f"bert.encoder.layer.{number}.")
        watched = [product.linears[-1][within:] for product in products]
        norms = [product.norm[within:] for product in products if product.norm]
        seen, source = pass_through(source, watched + norms)
        importance = [torch.ones(len(seen[0])), *(1 / summed.std(dim=1) for summed in seen[len(products) :])]
        fitted: list[QuantizedProduct] = []
        for product, name, right_TK, importance_T in zip(products, watched, seen, importance, strict=False):
            notify(product.name, len(done) + len(fitted), len(layers) * len(products))
            with simulated(model, fitted):
                ((inputs_TK,), _) = pass_through(states, [name])
            weight, bias = _parameters(model, product)
            some = _spread(len(inputs_TK), MAX_TOKENS)
            samples = Samples(inputs_TK[some], functional.linear(right_TK[some], weight, bias), importance_T[some])
            fitted.append(fit(product, samples, weight, bias, rounding))
        with simulated(model, fitted):
            _, states = pass_through(states, [])
        done += fitted
    return done


def equal_lengths(sequences: Sequence[Encoded], pad_id: int) -> Iterator[Batch]:
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
    for batch in batches:
        model(**{name: torch.from_numpy(array) for name, array in batch.arrays.items()})
    hook.remove()
    return [_Arguments(*given) for given in seen]


def _through(
    layer: nn.Module, states: Sequence[_Arguments], names: Sequence[str], *, last: bool
) -> tuple[list[Tensor], list[_Arguments]]:
    """The inputs [T, K] of the named parts of a layer, and what the next layer is called with."""
    seen: list[list[Tensor]] = [[] for _ in names]

    def note(_: nn.Module, given: tuple[Tensor], *, of: list[Tensor]) -> None:
        of.append(given[0].flatten(0, -2))

    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(partial(note, of=of))
        for name, of in zip(names, seen, strict=True)
    ]
    after = [one._replace(hidden=layer(one.hidden, one.visible, one.first_only and last)) for one in states]
    for hook in hooks:
        hook.remove()
    return [torch.cat(of) for of in seen], after


def _parameters(model: nn.Module, product: Product) -> tuple[Tensor, Tensor]:
    """The weights [N, K] and biases [N] of a product's Linears, side by side."""
    linears = [model.get_submodule(name) for name in product.linears]
    weight, bias = (torch.cat([getattr(linear, kind).detach() for linear in linears]) for kind in ("weight", "bias"))
    return weight, bias


def _spread(count: int, most: int) -> Tensor:
    """At most `most` places, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
