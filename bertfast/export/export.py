"""`bertfast export`: build the graph, check it in every runtime that is here, publish it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from bertfast import artifact
from bertfast.backends import ServedModel, backends_for, open_backend, open_served
from bertfast.backends.served import AS_TRAINED, ONNX_FILE
from bertfast.config import Precision
from bertfast.errors import ArtifactError, BackendError
from bertfast.export.check import check_export
from bertfast.export.graph import build_graph
from bertfast.model.weights import load_weights, open_checkpoint

Checks = dict[str, dict[str, float]]


def export(
    checkpoint_path: Path,
    out: Path,
    *,
    precision: Precision = Precision.FP32,
    settings: Mapping[str, Any] = AS_TRAINED,
    overwrite: bool = False,
) -> Checks:
    """Export a checkpoint as an ONNX artefact; returns the errors of each check in each runtime.

    Args:
        precision: what the matrix products are to execute in. The graph holds float32 weights; a runtime is told to
            compute in bf16, and asked what it does.
        settings: the task's settings that are to be others than the checkpoint's.
    Raises:
        CheckError: a runtime does not reproduce the source; nothing is published.
        BackendError: no runtime for this precision is installed, or none executes it on this machine, so nothing
            could be checked.
    """
    served = open_served(checkpoint_path, settings)
    if served.kind != "checkpoint":
        raise ArtifactError(f"{checkpoint_path} is already exported ('{served.kind}'). Give the checkpoint.")
    exported = replace(served, kind="onnx", precision=precision)
    runtimes = backends_for(exported)
    if not runtimes:
        raise BackendError(
            f"an export is checked before it is published, and no runtime for {precision.value} is here: "
            "pip install 'bertfast[cpu]'"
        )
    parents = {"checkpoint": served.sha256}
    with artifact.create(
        out,
        "onnx",
        task=served.task.name,
        precision=precision,
        labels=served.context.labels,
        parents=parents,
        overwrite=overwrite,
    ) as draft:
        onnx.save(_model(served), draft.path / ONNX_FILE)
        served.context.tokenizer.save(draft.path)
        checks = _check(served, replace(exported, path=draft.path), runtimes)
        draft.settings = {
            "max_length": served.context.max_length,
            "task": served.context.settings.model_dump(),
            "checks": checks,
        }
    return checks


def _model(served: ServedModel) -> onnx.ModelProto:
    checkpoint = served.checkpoint or open_checkpoint(served.path)
    module = served.task.build(checkpoint.config, len(served.context.labels), served.context.settings)
    load_weights(module, served.path, complete=True)
    weights = {name: tensor.detach().float().numpy() for name, tensor in module.state_dict().items()}
    return build_graph(served.task.architecture, weights, checkpoint.config, served.context.settings)


def _check(served: ServedModel, exported: ServedModel, runtimes: list[str]) -> Checks:
    checks: Checks = {}
    with open_backend(served, "torch") as source:
        for name in runtimes:
            with open_backend(exported, name) as backend:
                checks[name] = check_export(exported, source, backend)
    return checks
