"""What an exported model must show before it is published: the numbers of its source, on awkward batches too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bertfast.backends import Backend, ServedModel, relative_error, tolerance
from bertfast.backends.protocol import Arrays
from bertfast.config import Precision
from bertfast.errors import CheckError
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Encoded

_TEXTS: tuple[tuple[str, str | None], ...] = (
    ("The parcel was left with a neighbour, who has been away since Tuesday.", None),
    ("Why does the pump stop?", "A float switch cuts the current once the cistern is full."),
    ("No.", None),
    ("Prices rose 3.2% in March; rents, however, did not.", "Rents stayed where they were."),
    ("caf\u00e9, na\u00efve, \u00e5ngstr\u00f6m, \u6771\u4eac, \u041c\u043e\u0441\u043a\u0432\u0430 \U0001f600", None),
    ("It rained for nine days. " * 8, "The river broke its banks on the tenth day, below the old mill. " * 5),
    ("She sold the boat.", "The boat was never hers to sell, her brother said."),
    ("ten eleven twelve", ""),
)


def check_export(
    model: ServedModel, source: Backend, exported: Backend, precision: Precision | None = None
) -> dict[str, float]:
    """Compare a backend with its source; returns the largest relative error of each check.

    None may exceed the tolerance. In eight bits those against the source are judged together, by the root of their mean
    square: a number between two steps goes up here and down there, and a text such as calibration never saw may end
    far away by that alone.

    Args:
        precision: whose tolerance holds, where that is not the backend's own.

    Raises:
        CheckError: an error exceeds the backend's tolerance, or an output is not finite.
    """
    precision = precision or exported.precision
    per_token = model.task.per_token
    runs = [(name, batch, exported.run(batch), source.run(batch)) for name, batch in _batches(model)]
    scales = {name: max(float(np.abs(expected[name]).max()) for *_, expected in runs) for name in model.task.outputs}
    of_rows = {name: _errors(actual, expected, batch, per_token, scales) for name, batch, actual, expected in runs}
    own = {
        "padding invariance": _padding_invariance(model, exported, scales),
        "batch order": _batch_order(model, exported, scales),
    }
    if model.packed:
        own["neighbours in a row"] = _neighbours(model, exported, scales)
    errors = {name: max(found) for name, found in (of_rows | own).items()}
    judged = errors
    if precision in (Precision.INT8, Precision.FP8):
        together = np.concatenate(list(of_rows.values()))
        judged = {"all texts, in root mean square": float(np.sqrt(np.square(together).mean()))}
        judged |= {name: errors[name] for name in own}
    worst, limit = max(judged, key=lambda name: judged[name]), tolerance(exported.name, precision)
    if not judged[worst] <= limit:
        raise CheckError(
            f"{exported.name} differs from the source on '{worst}' by {judged[worst]:.2e} (relative to the largest "
            f"output), and {limit:.0e} is allowed in {precision.value}. Nothing was published. {_remedy(precision)}"
        )
    return errors


def _remedy(precision: Precision) -> str:
    if precision not in (Precision.INT8, Precision.FP8):
        return "Export in fp32, or leave this runtime out of the environment that exports."
    return (
        "Calibrate on more texts like those that will be served, or export in fp16 or bf16. Where the model has "
        "hardly learnt yet its outputs are close to 0, and rounding is large beside them: train it longer first."
    )


def _batches(model: ServedModel) -> Iterator[tuple[str, Batch]]:
    """Real tokens in the shapes that break exports."""
    rows = awkward_texts(model)
    pad_id = model.context.tokenizer.pad_id
    longest = max(rows, key=len)
    yield "ragged batch, both segments", pad(rows, pad_id)
    yield "one sequence", pad(rows[:1], pad_id)
    for length in (1, 2, 7, model.context.max_length):
        ids, types = np.resize(longest.input_ids, length), np.resize(longest.token_type_ids, length)
        yield f"length {length}", pad([Encoded(ids.tolist(), types.tolist())], pad_id)
    yield "rows of nothing but padding", pad([*rows[:2], Encoded([], []), Encoded([], [])], pad_id)


def awkward_texts(model: ServedModel) -> list[Encoded]:
    """A few sequences with what breaks exports: both segments, one word, none, all the length there is."""
    return model.context.tokenizer.encode(_TEXTS, model.context.max_length)


def _errors(
    actual: Arrays, expected: Arrays, batch: Batch, per_token: Sequence[str], scales: Mapping[str, float]
) -> list[float]:
    """Of each real row, and each real token, the error relative to an output's largest magnitude over all batches;
    infinite where an output is not finite, on padding too."""
    found = []
    for name, values in expected.items():
        if not np.isfinite(actual[name]).all():
            return [float("inf")]
        real = batch.attention_mask.astype(bool) if name in per_token else batch.lengths > 0
        rows = zip(actual[name][real], values[real], strict=True)
        found += [relative_error(one, other, scales[name]) for one, other in rows]
    return found


def _padding_invariance(model: ServedModel, backend: Backend, scales: Mapping[str, float]) -> list[float]:
    """The same rows with more padding behind them give the same numbers."""
    rows, pad_id = awkward_texts(model)[:4], model.context.tokenizer.pad_id
    longest = max(map(len, rows))
    short, long = pad(rows, pad_id), pad(rows, pad_id, min(model.context.max_length, longest + 17))
    padded = {
        name: values[:, :longest] if name in model.task.per_token else values
        for name, values in backend.run(long).items()
    }
    return _errors(padded, backend.run(short), short, model.task.per_token, scales)


def _batch_order(model: ServedModel, backend: Backend, scales: Mapping[str, float]) -> list[float]:
    """The same rows in another order give the same numbers, in that order."""
    batch = pad(awkward_texts(model), model.context.tokenizer.pad_id)
    turned = Batch(batch.input_ids[::-1].copy(), batch.attention_mask[::-1].copy(), batch.token_type_ids[::-1].copy())
    straight = {name: values[::-1] for name, values in backend.run(batch).items()}
    return _errors(backend.run(turned), straight, turned, model.task.per_token, scales)


def _neighbours(model: ServedModel, backend: Backend, scales: Mapping[str, float]) -> list[float]:
    """A sequence that has a row for itself gives the numbers that it gives beside others."""
    pad_id, per_token = model.context.tokenizer.pad_id, model.task.per_token
    found: list[float] = []
    for row in awkward_texts(model):
        alone = pad([row], pad_id)
        short = pad([Encoded(row.input_ids[:3], row.token_type_ids[:3])] * 2 + [row], pad_id)
        beside = {name: values[-1:] for name, values in backend.run(short).items()}
        found += _errors(beside, backend.run(alone), alone, per_token, scales)
    return found
