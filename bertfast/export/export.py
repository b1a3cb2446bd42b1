"""`bertfast export`: build the graph, check it in every runtime that is here, publish it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from bertfast import artifact
from bertfast.backends import ServedModel, backends_for, open_backend, open_served
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.served import AS_TRAINED, ONNX_FILE
from bertfast.config import Precision
from bertfast.errors import ArtifactError, BackendError, ConfigError
from bertfast.export.check import check_export
from bertfast.export.graph import build_graph
from bertfast.export.int8 import DevRows, Int8Plan, Loss, Quantization, hold_in_runtimes, quantize_checkpoint
from bertfast.export.rules import check_rules
from bertfast.model.weights import load_weights, open_checkpoint
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.search import Notify
from bertfast.quantize.simulate import simulated

Checks = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Exported:
    """What an export showed.

    Attributes:
        checks: the errors of each check in each runtime.
        quantization: how INT8 was made, where it was.
    """

    checks: Checks
    quantization: Quantization | None


def export(
    checkpoint_path: Path,
    out: Path,
    *,
    precision: Precision = Precision.FP32,
    settings: Mapping[str, Any] = AS_TRAINED,
    int8: Int8Plan | None = None,
    overwrite: bool = False,
    notify: Notify = lambda *_: None,
) -> Exported:
    """Export a checkpoint as an ONNX artefact.

    Args:
        precision: what the matrix products are to execute in. For fp32 and bf16 the graph holds float32 weights; a
            runtime is told to compute in bf16, and asked what it does. For int8 the graph holds what is in INT8 as
            such, and runtimes compute the rest in the fastest precision that they have.
        int8: how INT8 is made; wanted for int8 alone.
        notify: called with (what is being done, steps done, steps in all).
        settings: the task's settings that are to be others than the checkpoint's.
    Raises:
        AccuracyError: INT8 loses more of the metric than is allowed; nothing is published.
        ConfigError: int8 without a plan, or a plan without int8.
        CheckError: a runtime does not reproduce the source; nothing is published.
        BackendError: no runtime for this precision is installed, or none executes it on this machine, so nothing
            could be checked.
    """
    if (precision is Precision.INT8) != (int8 is not None):
        raise ConfigError(
            "INT8 is calibrated on texts like those that will be served: --precision int8 and --calibration FILE "
            "belong together."
        )
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
        with TorchBackend(served, device="cpu") as source:
            _refuse_what_is_not_finite(served, source)
            dev = DevRows(served, source, int8.dev, int8.columns) if int8 and int8.dev else None
            quantized, account = quantize_checkpoint(served, source, int8, dev, notify) if int8 else ((), None)
            graph = _model(served, quantized)
            check_rules(graph)
            onnx.save(graph, draft.path / ONNX_FILE)
            served.context.tokenizer.save(draft.path)
            promised = account.int8_weights if account else 0
            exported = replace(exported, path=draft.path, int8_weights=promised)
            with simulated(source.module, quantized):
                checks, losses = _check(source, exported, runtimes, dev)
            if account and int8 and int8.max_drop is not None:
                hold_in_runtimes(losses, int8.max_drop)
                account = account.model_copy(update={"losses": losses})
        draft.settings = {
            "max_length": served.context.max_length,
            "task": served.context.settings.model_dump(),
            "checks": checks,
        }
        if account:
            draft.settings |= {"int8_weights": promised, "quantization": account.model_dump(mode="json")}
    return Exported(checks, account)


def _refuse_what_is_not_finite(served: ServedModel, source: TorchBackend) -> None:
    for name, weights in source.module.state_dict().items():
        broken = int((~weights.isfinite()).sum())
        if broken:
            raise ArtifactError(
                f"{served.path}: {broken:,} of the {weights.numel():,} numbers of {name} are NaN or infinite. Train "
                "again with a lower learning rate, or give an earlier checkpoint."
            )


def _model(served: ServedModel, quantized: Sequence[QuantizedProduct]) -> onnx.ModelProto:
    checkpoint = served.checkpoint or open_checkpoint(served.path)
    module = served.task.build(checkpoint.config, len(served.context.labels), served.context.settings)
    load_weights(module, served.path, complete=True)
    weights = {name: tensor.detach().float().numpy() for name, tensor in module.state_dict().items()}
    return build_graph(served.task.architecture, weights, checkpoint.config, served.context.settings, quantized)


def _check(
    source: TorchBackend, exported: ServedModel, runtimes: list[str], dev: DevRows | None
) -> tuple[Checks, dict[str, Loss]]:
    """The errors in each runtime that executes what was promised, and what it loses on the rows of the search."""
    checks: Checks = {}
    losses: dict[str, Loss] = {}
    refusals: list[BackendError] = []
    for name in runtimes:
        try:
            backend = open_backend(exported, name)
        except BackendError as refusal:
            refusals.append(refusal)
            warnings.warn(f"{refusal} The export is not checked in it.", stacklevel=2)
            continue
        with backend:
            checks[name] = check_export(exported, source, backend)
            if dev:
                losses[name] = dev.compare(backend.run)
    if not checks:
        raise refusals[0]
    return checks, losses
