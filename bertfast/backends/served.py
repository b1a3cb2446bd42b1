"""A model as a runtime sees it: read from a checkpoint or from an exported artefact, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bertfast import artifact
from bertfast.backends.engine_plan import EngineRecord, read_engine
from bertfast.config import Precision
from bertfast.errors import ArtifactError, ConfigError
from bertfast.model.snapshot import model_name
from bertfast.model.weights import Checkpoint, config_file, open_checkpoint
from bertfast.tasks import Context, Task, get_task, task_of
from bertfast.text import tokenizer as tokenization

ONNX_FILE = "model.onnx"
# INT8 with fp16 around it, which engines are built from
ENGINE_FILE = "model_fp16.onnx"
AS_TRAINED: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ServedModel:
    """What is needed to turn texts into answers, beside the runtime.

    Attributes:
        kind: `checkpoint`, `onnx` or `engine`.
        precision: what its matrix products are to execute in.
        sha256: identity of the artefact.
        source_sha256: identity of the checkpoint that it was exported from, or its own.
        file: the graph's, in an exported artefact.
        int8_weights: how many of its weights were promised to be multiplied in INT8.
        packed: whether its graph takes one row of real tokens, instead of rows with padding.
        checkpoint: what it was read from, where that is a checkpoint.
        engine: what its manifest says of its plans, where it is one.
    """

    path: Path
    kind: str
    task: Task
    context: Context
    precision: Precision
    sha256: str
    source_sha256: str
    file: str = ONNX_FILE
    int8_weights: int = 0
    packed: bool = False
    checkpoint: Checkpoint | None = None
    engine: EngineRecord | None = None

    @property
    def name(self) -> str:
        """What it is called: its directory's name, or OWNER/NAME of a model of the hub."""
        return model_name(self.path)


def open_served(path: Path, settings: Mapping[str, Any] = AS_TRAINED) -> ServedModel:
    """Open a checkpoint (ours, Hugging Face's or Google's), an exported ONNX artefact or an engine.

    Args:
        settings: the task's settings that are to be others than the artefact's.
    Raises:
        ArtifactError: it is none of them, or not whole, or has no head for a task.
        EngineError: a plan of the engine is not the one that was built.
        ConfigError: a setting is none of the task's, or is fixed in an exported graph.
    """
    has_manifest = (path / artifact.MANIFEST).is_file()
    kind = artifact.read_manifest(path).kind if has_manifest else None
    if kind == "onnx":
        return _open_exported(path, artifact.open_manifest(path), None, settings)
    if kind == "engine":
        return _open_exported(path, *read_engine(path), settings)
    if has_manifest or config_file(path).is_file():
        return _open_checkpoint(path, settings)
    artifact.open_manifest(path)  # says what is wrong with it
    raise ArtifactError(f"{path} is neither a checkpoint nor an exported model nor an engine.")


def _open_checkpoint(path: Path, settings: Mapping[str, Any]) -> ServedModel:
    checkpoint = open_checkpoint(path)
    task = task_of(checkpoint)
    chosen = task.settings.parse({**checkpoint.task_settings, **settings}, str(path))
    return ServedModel(
        path=path,
        kind="checkpoint",
        task=task,
        context=Context(checkpoint.tokenizer, checkpoint.labels, checkpoint.max_length, chosen),
        precision=Precision.FP32,
        sha256=checkpoint.sha256,
        source_sha256=checkpoint.sha256,
        checkpoint=checkpoint,
    )


def _promised(path: Path, manifest: artifact.Manifest) -> int:
    """How many weights an INT8 artefact says are multiplied in INT8."""
    if manifest.precision is not Precision.INT8:
        return 0
    quantization = manifest.settings.get("quantization", {})
    if "quantized_weights" not in quantization:
        raise ArtifactError(f"{path}: the manifest says int8, and not of how many weights. Export it again.")
    return int(quantization["quantized_weights"])


def _open_exported(
    path: Path, manifest: artifact.Manifest, engine: EngineRecord | None, settings: Mapping[str, Any]
) -> ServedModel:
    if manifest.task is None or manifest.precision is None:
        raise ArtifactError(f"{path}: the manifest names no task or no precision. Export it again.")
    task = get_task(manifest.task)
    for name in task.of_the_weights:
        if name in settings:
            raise ConfigError(f"task.{name} is fixed in {path} by its export. Give it to 'bertfast export' instead.")
    chosen = task.settings.parse({**manifest.settings.get("task", {}), **settings}, str(path))
    max_length = int(manifest.settings["max_length"])
    return ServedModel(
        path=path,
        kind=manifest.kind,
        task=task,
        context=Context(tokenization.load(path), manifest.labels, max_length, chosen),
        precision=manifest.precision,
        sha256=manifest.sha256,
        source_sha256=manifest.parents["checkpoint"],
        int8_weights=_promised(path, manifest),
        packed=bool(manifest.settings.get("packed", False)),
        engine=engine,
    )
