"""A graph that others have exported becomes an artefact, by the checks that ours pass too.

Its weights and its precision stay what they are. There is no source to hold it against: the runtimes are held against
each other, and each against itself with more padding and in another order.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bertfast import artifact
from bertfast.backends import Backend, ServedModel, backends_for, open_backend
from bertfast.backends.served import ONNX_FILE
from bertfast.config import Precision
from bertfast.errors import ArtifactError, BackendError
from bertfast.export.check import check_export
from bertfast.export.foreign import precision_of, with_our_signature
from bertfast.export.storage import files_of, save
from bertfast.model.weights import describe, write_config
from bertfast.tasks import Context, task_of

Checks = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Adopted:
    """What became of a graph of others.

    Attributes:
        precision: what its matrix products are in, by its types.
        checks: the errors of each check in each runtime.
    """

    precision: Precision
    checks: Checks


def foreign_graph(folder: Path) -> Path:
    """The graph in a folder of others.

    Raises:
        ArtifactError: the folder is an artefact, or holds no graph, or several and none is called model.onnx.
    """
    if (folder / artifact.MANIFEST).is_file():
        raise ArtifactError(f"{folder} is an artefact of bertfast already. Use it as it is.")
    found = sorted(folder.glob("*.onnx"))
    if folder / ONNX_FILE in found:
        return folder / ONNX_FILE
    if len(found) != 1:
        there = f"holds {', '.join(file.name for file in found)}" if found else "holds no .onnx file"
        raise ArtifactError(f"{folder} {there}. Give a folder with one, or with one that is called {ONNX_FILE}.")
    return found[0]


def adopt(file: Path, out: Path, *, overwrite: bool = False) -> Adopted:
    """Publish a graph of others, with the config.json and the tokenizer beside it, as an ONNX artefact.

    Args:
        file: the graph; its products may be in fp32, fp16, bf16 or, by whatever scheme, INT8.
    Raises:
        ArtifactError: it is not whole, its signature is not that of its task, or its folder describes no BERT with a
            task.
        BackendError: no runtime executes it.
        CheckError: the runtimes differ, or its numbers change with padding or order; nothing is published.
    """
    described = describe(file.parent)
    task, labels = task_of(described), described.labels
    settings = task.settings.parse(described.task_settings, str(file.parent))
    context = Context(described.tokenizer, labels, described.max_length, settings)
    theirs, sha256 = _read(file)
    model = with_our_signature(theirs, file, task, len(labels))
    precision, weights = precision_of(model)
    with artifact.create(
        out,
        "onnx",
        task=task.name,
        precision=precision,
        labels=labels,
        parents={"checkpoint": sha256},
        overwrite=overwrite,
    ) as draft:
        save(model, draft.path / ONNX_FILE)
        write_config(draft.path, described.config, task.architecture, labels, task.problem)
        described.tokenizer.save(draft.path, context.max_length)
        served = ServedModel(draft.path, "onnx", task, context, precision, sha256, sha256, int8_weights=weights)
        checks = _check(served)
        draft.settings = {"max_length": context.max_length, "task": settings.model_dump(), "checks": checks}
        if weights:
            draft.settings["quantization"] = {"quantized_weights": weights}
    return Adopted(precision, checks)


def _read(file: Path) -> tuple[onnx.ModelProto, str]:
    """A graph with its weights, wherever they lie, and the identity of all its files."""
    try:
        return onnx.load(file), artifact.sha256_of_all(files_of(file))
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}. Copy it again, with the files of its weights.") from None


def _check(served: ServedModel) -> Checks:
    """The errors in each runtime that executes the graph, against the first of them."""
    found: Checks = {}
    source: Backend | None = None
    refusals = [BackendError(f"no runtime for {served.precision.value} is here: pip install 'bertfast[cpu]'")]
    with ExitStack() as opened:
        for name in backends_for(served):
            try:
                backend = opened.enter_context(open_backend(served, name))
            except BackendError as refusal:
                refusals.append(refusal)
                warnings.warn(f"{refusal} The graph is not checked in it.", stacklevel=2)
                continue
            source = source or backend
            found[name] = check_export(served, source, backend)
    if not found:
        raise refusals[-1]
    return found
