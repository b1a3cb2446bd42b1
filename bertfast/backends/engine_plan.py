"""What the manifest of an engine says, and whether its plan may be loaded here.

Deserialising a plan executes code, and a plan of another GPU or library fails in ways that do not say so: everything
is checked before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bertfast import artifact
from bertfast.config import Config, ShapeProfile
from bertfast.errors import ArtifactError, EngineError

Library = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
_AMPERE = 80


class PlanRecord(Config):
    """A plan, as its manifest names it.

    Attributes:
        file: its name in the artefact.
        sha256: of the file; reports name a plan by it.
        target: the compute capability that it was built for, such as `SM89`.
    """

    file: str
    sha256: str
    target: str


class Bucket(Config):
    """The sequences that are padded to one length.

    Attributes:
        length: tokens that each of them is padded to.
        sequences: how many there are.
        real_tokens: theirs, without padding.
    """

    length: int
    sequences: int
    real_tokens: int


class Padded(Config):
    """What is computed for the same real tokens, in tokens with padding.

    Attributes:
        one_profile: every sequence padded to the longest.
        sorted_batches: batches of similar length, each padded to the longest of its own (see `profiles.by_length`).
        buckets: every sequence padded to its bucket.
    """

    one_profile: int
    sorted_batches: int
    buckets: int


class ShapePlan(Config):
    """Buckets of length, what they save, and the profiles that hold them.

    Attributes:
        buckets: the shortest first; a bucket holds what is too long for the one before it.
        profiles: one a bucket, and one for what is longer.
    """

    buckets: tuple[Bucket, ...]
    padded: Padded
    profiles: tuple[ShapeProfile, ...]

    @property
    def real_tokens(self) -> int:
        return sum(bucket.real_tokens for bucket in self.buckets)

    def waste(self, padded: int) -> float:
        """The share of the computed tokens that is padding."""
        return 1 - self.real_tokens / padded

    @property
    def saved(self) -> float:
        """How many times the padding of the buckets goes into that of one profile; infinite where none is left."""
        left = self.padded.buckets - self.real_tokens
        return (self.padded.one_profile - self.real_tokens) / left if left else float("inf")


class EngineRecord(Config):
    """What an engine was built from, with what and for what: `settings["engine"]` of its manifest.

    Attributes:
        library_version: what built it.
        cuda_version: the major version of CUDA that its wheels are for; None where their names do not tell.
        gpu: the GPU that it was built on; None where it was built ahead of time (TensorRT for RTX).
        onnx: the file in the artefact that it was built from; `onnx_sha256` its hash.
        calibration_sha256: of the text that the export was calibrated on; None where there was none.
        profiles: the shapes that every plan takes, in the order of the optimisation profiles.
        shapes: how they were planned from texts; None where they are a recipe's.
        recipe: the settings that it was built with, which a rebuild takes again.
    """

    library: Library
    library_version: str
    cuda_version: str | None
    gpu: str | None
    onnx: str
    onnx_sha256: str
    calibration_sha256: str | None = None
    plans: tuple[PlanRecord, ...] = Field(min_length=1)
    profiles: tuple[ShapeProfile, ...] = Field(min_length=1)
    shapes: ShapePlan | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: Literal[False] = Field(False, exclude=True)  # what manifests of before the refusal say
    cuda_graphs: bool = False
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Here:
    """What would load a plan: the library that is installed, and the GPU.

    Attributes:
        gpu: its name.
        compute_capability: such as `SM89`.
    """

    library: Library
    version: str
    gpu: str
    compute_capability: str


def read_engine(path: Path) -> tuple[artifact.Manifest, EngineRecord]:
    """The manifest of an engine and what it says of its plans; every file is checked against its hash.

    Raises:
        ArtifactError: it is no engine, or not whole in what a rebuild needs.
        EngineError: a plan is not the one that was built.
    """
    manifest = artifact.read_manifest(path, "engine")
    record = EngineRecord.parse(manifest.settings.get("engine", {}), f"{path / artifact.MANIFEST}: engine")
    onnx = manifest.files.get(record.onnx)
    if onnx is None or onnx.sha256 != record.onnx_sha256:
        raise ArtifactError(f"{path / artifact.MANIFEST} names another graph than {record.onnx} is. Make it anew.")
    plans = {plan.file for plan in record.plans}
    for name, file in manifest.files.items():
        if name not in plans:
            artifact.check_file(path / name, file)
    for plan in record.plans:
        _check_plan(path, plan, manifest.files.get(plan.file))
    return manifest, record


def _check_plan(path: Path, plan: PlanRecord, file: artifact.FileRecord | None) -> None:
    if file is None or file.sha256 != plan.sha256:
        raise EngineError(f"{path / artifact.MANIFEST} names two hashes for {plan.file}. {_rebuild(path)}")
    try:
        artifact.check_file(path / plan.file, file)
    except ArtifactError as error:
        raise EngineError(f"{error} A plan is code, and this one is not loaded. {_rebuild(path)}") from None


def read_plan(path: Path, plan: PlanRecord) -> bytes:
    """The bytes of a plan, of which the hash was taken: what is deserialised is what was checked.

    Raises:
        EngineError: they are not those that were built.
    """
    data = (path / plan.file).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != plan.sha256:
        raise EngineError(
            f"{path / plan.file} has SHA-256 {found[:12]}..., and its manifest says {plan.sha256[:12]}.... A plan is "
            f"code, and this one is not loaded. {_rebuild(path)}"
        )
    return data


def check_loadable(path: Path, record: EngineRecord, here: Here) -> PlanRecord:
    """The plan of an engine that this library loads on this GPU.

    Args:
        path: of the artefact, for the command that mends it.
    Raises:
        EngineError: another library, version, GPU or compute capability than it was built for; one message each.
    """
    if record.library != here.library:
        raise EngineError(
            f"{path} was built by {record.library}, and {here.library} is to load it. Use --backend {record.library}, "
            "or build it again with a recipe that says "
            f'library = "{here.library}": bertfast build {path} --recipe FILE --out DIR'
        )
    _check_version(path, record, here)
    return _plan_for(path, record, here)


def _check_version(path: Path, record: EngineRecord, here: Here) -> None:
    if _numbers(record.library_version) != _numbers(here.version):
        raise EngineError(
            f"{path} was built by {record.library} {record.library_version}, and {here.version} is installed. It loads "
            f"in that version alone: pip install '{record.library}=={record.library_version}'. Or: {_rebuild(path)}"
        )


def _plan_for(path: Path, record: EngineRecord, here: Here) -> PlanRecord:
    if record.hardware_compatibility == "ampere_plus" and _number(here.compute_capability) >= _AMPERE:
        return record.plans[0]
    for plan in record.plans:
        if plan.target == here.compute_capability:
            _check_gpu(path, record, here)
            return plan
    targets = ", ".join(plan.target for plan in record.plans)
    target = f" --target {here.compute_capability}" if record.library == "tensorrt-rtx" else ""
    raise EngineError(
        f"{path} was built for {targets}, and {here.gpu} has compute capability {here.compute_capability}. "
        f"{_rebuild(path)}{target}"
    )


def _check_gpu(path: Path, record: EngineRecord, here: Here) -> None:
    """A plan that was timed on one GPU belongs to GPUs of that name, unless it was built to be compatible."""
    if record.gpu not in (None, here.gpu) and record.hardware_compatibility == "none":
        raise EngineError(
            f"{path} was built on {record.gpu}, and this is {here.gpu}. {_rebuild(path)} To carry one engine between "
            'GPUs of one compute capability, build with hardware_compatibility = "same_compute_capability".'
        )


def _rebuild(path: Path) -> str:
    return f"Build it again from its ONNX: bertfast build {path} --rebuild"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _number(target: str) -> int:
    return int(target.removeprefix("SM"))
