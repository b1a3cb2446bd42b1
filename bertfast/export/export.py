"""`bertfast export`: build the graph, check it in every runtime that is here, publish it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import onnx

from bertfast import artifact
from bertfast.backends import ServedModel, backends_for, open_backend, open_served
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.rows import rows_of
from bertfast.backends.served import AS_TRAINED, ENGINE_FILE
from bertfast.config import Precision
from bertfast.errors import AccuracyError, ArtifactError, BackendError, CheckError, ConfigError
from bertfast.export.check import awkward_texts, check_export
from bertfast.export.dev import DevRows, Loss, refusal
from bertfast.export.graph import build_graph
from bertfast.export.nodes import Attention
from bertfast.export.overflow import FP16_LARGEST, overflows
from bertfast.export.plan import NO_TEXTS, ExportPlan, calibration_text
from bertfast.export.quantized import Quantization, quantize_checkpoint
from bertfast.export.rules import check_rules
from bertfast.export.storage import save
from bertfast.export.typed import typed
from bertfast.model.weights import Checkpoint, load_weights, open_checkpoint, write_config
from bertfast.quantize.product import Format, QuantizedProduct
from bertfast.quantize.search import Notify
from bertfast.quantize.simulate import simulated
from bertfast.quantize.walk import equal_lengths
from bertfast.text.tables import split_reference
from bertfast.text.tokenizer import Encoded

Checks = dict[str, dict[str, float]]
_QUANTIZED = (Precision.INT8, Precision.FP8)


@dataclass(frozen=True)
class Exported:
    """What an export showed.

    Attributes:
        checks: the errors of each check in each runtime.
        losses: what each runtime loses on the rows with right answers, where there are any.
        kept_in_fp32: tensors that would leave the range of fp16, with their largest magnitudes.
        quantization: how INT8 or FP8 was made, where it was.
        engine_form: whether engines are built from another graph than CPUs run.
    """

    checks: Checks
    losses: Mapping[str, Loss]
    kept_in_fp32: Mapping[str, float]
    quantization: Quantization | None
    engine_form: bool


def export(
    checkpoint_path: Path,
    out: Path,
    *,
    precision: Precision = Precision.FP32,
    settings: Mapping[str, Any] = AS_TRAINED,
    plan: ExportPlan = NO_TEXTS,
    attention: Attention = "plain",
    packed: bool = False,
    overwrite: bool = False,
    notify: Notify = lambda *_: None,
) -> Exported:
    """Export a checkpoint as an ONNX artefact.

    Args:
        precision: what the matrix products are to execute in. The graph says it by its types: fp16 and bf16 hold
            weights in 16 bit; int8 holds what is in INT8 as such, in fp32 for CPUs, which compute the rest in the
            fastest precision that they have, and in fp16 for engines; fp8 has fp16 around it.
        settings: the task's settings that are to be others than the checkpoint's.
        plan: the texts that int8 and fp8 are calibrated on, that fp16 is watched on, and that all are judged by.
        attention: how it stands in what is in 16 bit; in fp32 it is always written out.
        packed: whether the graph takes one row of real tokens, in which each attends to those of its sequence alone.
        notify: called with (what is being done, steps done, steps in all).
    Raises:
        AccuracyError: it loses more of the metric than is allowed; nothing is published.
        ConfigError: int8 or fp8 without calibration text.
        CheckError: a runtime does not reproduce the source; nothing is published.
        BackendError: no runtime for this precision is installed, or none executes it on this machine, so nothing
            could be checked.
    """
    if precision in _QUANTIZED and plan.calibration is None:
        raise ConfigError(
            f"{precision.value} is calibrated on texts like those that will be served: give --calibration FILE."
        )
    if attention == "operator" and precision is Precision.FP32:
        raise ConfigError(
            "TensorRT builds the Attention operator in 16 bit alone, and --precision is fp32. Leave --attention "
            "out, or give --precision fp16."
        )
    served = open_served(checkpoint_path, settings)
    if served.kind != "checkpoint":
        raise ArtifactError(f"{checkpoint_path} is already exported ('{served.kind}'). Give the checkpoint.")
    exported = replace(served, kind="onnx", precision=precision, packed=packed)
    runtimes = backends_for(exported)
    if not runtimes:
        raise BackendError(
            f"an export is checked before it is published, and no runtime for {precision.value} is here: "
            "pip install 'bertfast[cpu]'"
        )
    with (
        artifact.create(
            out,
            "onnx",
            task=served.task.name,
            precision=precision,
            labels=served.context.labels,
            parents={"checkpoint": served.sha256},
            overwrite=overwrite,
        ) as draft,
        TorchBackend(served, device="cpu") as source,
    ):
        _refuse_what_is_not_finite(served, source)
        dev = DevRows(served, source, plan.dev, plan.columns) if plan.dev else None
        texts = calibration_text(served, plan)
        exported = replace(exported, path=draft.path)
        making = _Making(served, exported, source, runtimes, attention, texts, dev)
        result = _write(making, plan, notify)
        draft.settings = _settings(served, plan, result) | {"attention": attention, "packed": packed}
    return result


def _refuse_what_is_not_finite(served: ServedModel, source: TorchBackend) -> None:
    for name, weights in source.module.state_dict().items():
        broken = int((~weights.isfinite()).sum())
        if broken:
            raise ArtifactError(
                f"{served.path}: {broken:,} of the {weights.numel():,} numbers of {name} are NaN or infinite. Train "
                "again with a lower learning rate, or give an earlier checkpoint."
            )


@dataclass(frozen=True)
class _Making:
    """What the graphs of an export are made of and judged by.

    Attributes:
        exported: what is to be, in the directory that it is written to.
        runtimes: those that must give the numbers of `source`.
        texts: the sequences of each calibration text.
    """

    served: ServedModel
    exported: ServedModel
    source: TorchBackend
    runtimes: Sequence[str]
    attention: Attention
    texts: Sequence[Sequence[Encoded]]
    dev: DevRows | None


def _write(making: _Making, plan: ExportPlan, notify: Notify) -> Exported:
    """The graphs of an export in its directory, checked; in eight bits the first choice that holds in the runtimes."""
    served, precision, dev = making.served, making.exported.precision, making.dev
    refused: AccuracyError | None = None
    choices: Iterable[tuple[tuple[QuantizedProduct, ...], Quantization | None]] = [((), None)]
    if precision in _QUANTIZED:
        kind = cast(Format, precision.value)
        choices = quantize_checkpoint(served, making.source, making.texts, plan, kind, dev, notify)
    for quantized, account in choices:
        found = _attempt(making, quantized, account)
        if dev is not None and plan.max_drop is not None:
            refused = refusal(found.losses, plan.max_drop, precision, len(dev.golds))
        if refused is None:
            return found
    assert refused is not None
    raise refused


def _attempt(making: _Making, quantized: Sequence[QuantizedProduct], account: Quantization | None) -> Exported:
    """The graphs with these products in eight bits, in the place of those before, and what they show."""
    served, exported, source = making.served, making.exported, making.source
    graph = _model(served, quantized, packed=exported.packed)
    check_rules(graph)
    watched = exported.precision not in (Precision.FP32, Precision.BF16)
    kept = _overflows(exported, graph, making.texts) if watched else {}
    promised = account.quantized_weights if account and exported.precision is Precision.INT8 else 0
    exported = replace(exported, int8_weights=promised)
    plain = making.attention == "plain"
    narrow = graph if plain else _model(served, quantized, making.attention, exported.packed)
    _refuse_what_cannot_be_kept(narrow, kept)
    for form, model in _forms(exported, graph, narrow, kept):
        check_rules(model)
        save(model, exported.path / form)
        onnx.checker.check_model(exported.path / form, full_check=True)
    _write_beside(served, exported.path)
    with simulated(source.module, quantized):
        checks, losses = _check(source, exported, making.runtimes, making.dev)
        engine_form = (exported.path / ENGINE_FILE).is_file()
        if engine_form:
            checks["fp16 around INT8"] = _check_engine_form(source, exported)
    return Exported(checks, losses, kept, account, engine_form)


def _write_beside(served: ServedModel, directory: Path) -> None:
    """What optimum and transformers look for beside a graph."""
    config = _checkpoint(served).config
    write_config(directory, config, served.task.architecture, served.context.labels, served.task.problem)
    served.context.tokenizer.save(directory, served.context.max_length)


def _checkpoint(served: ServedModel) -> Checkpoint:
    return served.checkpoint or open_checkpoint(served.path)


def _model(
    served: ServedModel, quantized: Sequence[QuantizedProduct], attention: Attention = "plain", packed: bool = False
) -> onnx.ModelProto:
    config = _checkpoint(served).config
    module = served.task.build(config, len(served.context.labels), served.context.settings)
    load_weights(module, served.path, complete=True)
    weights = {name: tensor.detach().float().numpy() for name, tensor in module.state_dict().items()}
    settings, architecture = served.context.settings, served.task.architecture
    return build_graph(architecture, weights, config, settings, quantized, attention, packed)


def _overflows(served: ServedModel, graph: onnx.ModelProto, texts: Sequence[Sequence[Encoded]]) -> dict[str, float]:
    """What would leave the range of fp16 on the calibration text, or on a few sentences where there is none."""
    batches = equal_lengths(list(chain(*texts)) or awkward_texts(served), served.context.tokenizer.pad_id)
    if served.packed:
        batches = (row for batch in batches for _, row in rows_of(batch))
    return overflows(graph, (batch.graph_inputs for batch in batches))


def _refuse_what_cannot_be_kept(graph: onnx.ModelProto, kept: Mapping[str, float]) -> None:
    """Raise CheckError where a tensor that fp16 cannot hold lies within an operator."""
    there = {name for node in graph.graph.node for name in node.output}
    for name, value in kept.items():
        if name not in there:
            raise CheckError(
                f"{name} reaches {value:,.0f} on the calibration text, too near to the {FP16_LARGEST:,.0f} of fp16, "
                "and within the Attention operator it cannot be kept in fp32. Export without --attention operator, or "
                "in bf16."
            )


def _forms(
    exported: ServedModel, graph: onnx.ModelProto, narrow: onnx.ModelProto, kept: Mapping[str, float]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs of an artefact by their files' names; `narrow` is what becomes one of 16 bit."""
    match exported.precision:
        case Precision.FP32:
            yield exported.file, graph
        case Precision.BF16:
            yield exported.file, typed(narrow, Precision.BF16)
        case Precision.FP16 | Precision.FP8:
            yield exported.file, typed(narrow, Precision.FP16, kept)
        case Precision.INT8:
            yield exported.file, graph
            yield ENGINE_FILE, typed(narrow, Precision.FP16, kept)


def _check(
    source: TorchBackend, exported: ServedModel, runtimes: Sequence[str], dev: DevRows | None
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
                losses[name] = dev.compare(backend)
    if not checks:
        raise refusals[0]
    return checks, losses


def _check_engine_form(source: TorchBackend, exported: ServedModel) -> dict[str, float]:
    """INT8 with fp16 around it has no CPU that executes it: its numbers are computed in fp32."""
    form = replace(exported, file=ENGINE_FILE, precision=Precision.FP16, int8_weights=0)
    with open_backend(form, "onnxruntime") as backend:
        return check_export(exported, source, backend, Precision.INT8)


def _settings(served: ServedModel, plan: ExportPlan, result: Exported) -> dict[str, Any]:
    """What the manifest says of an export."""
    found: dict[str, Any] = {
        "max_length": served.context.max_length,
        "task": served.context.settings.model_dump(),
        "checks": result.checks,
    }
    texts = {"calibration": plan.calibration, "dev": plan.dev}
    hashes = {name: artifact.sha256_of(split_reference(path)[0]) for name, path in texts.items() if path}
    if hashes:
        found |= {"plan": plan.model_dump(mode="json"), "text_sha256": hashes}
    if result.losses:
        found["losses"] = {name: loss.model_dump() for name, loss in result.losses.items()}
    if result.kept_in_fp32:
        found["kept_in_fp32"] = dict(result.kept_in_fp32)
    if result.engine_form:
        found["engine_onnx"] = ENGINE_FILE
    if result.quantization:
        found["quantization"] = result.quantization.model_dump(mode="json")
    return found
