"""`bertfast build`: an ONNX artefact and a recipe become an engine that carries what it was made from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertfast import artifact
from bertfast.artifact import Draft, Manifest
from bertfast.backends.engine_plan import EngineRecord, PlanRecord, ShapePlan
from bertfast.backends.gpu import first_gpu
from bertfast.backends.served import ONNX_FILE
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.library import Network, Product, build_plan, cuda_version, products, read_network
from bertfast.engine.recipe import Recipe
from bertfast.errors import ArtifactError, EngineError
from bertfast.quantize.search import Notify

TIMING_CACHE = "timing.cache"
_FORMATS = {"float": "fp32", "half": "fp16", "bf16": "bf16", "int8": "int8", "fp8": "fp8"}
_FIRST_TARGET = {"fp32": 80, "fp16": 75, "bf16": 80, "int8": 75, "fp8": 89}  # of TensorRT for RTX 1.7, tried on each


@dataclass(frozen=True)
class Source:
    """What an engine is built from: an ONNX artefact, or an engine with the ONNX that travels along.

    Attributes:
        engine: what the engine's manifest says; None for an ONNX artefact.
        files: what goes into the new engine as it is, the ONNX that is built among it.
    """

    path: Path
    manifest: Manifest
    engine: EngineRecord | None
    precision: Precision
    onnx: str
    files: tuple[str, ...]

    @property
    def calibration_sha256(self) -> str | None:
        found: str | None = self.manifest.settings.get("text_sha256", {}).get("calibration")
        return found

    @property
    def parents(self) -> dict[str, str]:
        return self.manifest.parents if self.engine else {**self.manifest.parents, "onnx": self.manifest.sha256}


def open_source(path: Path) -> Source:
    """Open what is to be built; every file that goes into the new engine is checked, and plans are not read.

    Raises:
        ArtifactError: it is neither an ONNX artefact nor an engine, or is packed, or such a file differs from its
            manifest.
    """
    manifest = artifact.read_manifest(path)
    if manifest.kind not in ("onnx", "engine") or manifest.precision is None:
        remedy = f"Export it first: bertfast export {path} --out DIR" if manifest.kind == "checkpoint" else ""
        raise ArtifactError(f"{path} is a '{manifest.kind}', and an engine is built from an 'onnx' artefact. {remedy}")
    if manifest.settings.get("packed", False):
        raise ArtifactError(
            f"{path} is packed, and the profiles of an engine are of rows with padding. Export it without --packed."
        )
    engine = EngineRecord.parse(manifest.settings.get("engine", {}), str(path)) if manifest.kind == "engine" else None
    onnx = engine.onnx if engine else str(manifest.settings.get("engine_onnx", ONNX_FILE))
    made = {plan.file for plan in engine.plans} if engine else set()
    files = [name for name in manifest.files if name not in made and (".onnx" not in name or name.startswith(onnx))]
    if onnx not in files:
        raise ArtifactError(f"{path} has no {onnx}, which its engine is to be built from. Export it again.")
    for name in files:
        artifact.check_file(path / name, manifest.files[name])
    return Source(path, manifest, engine, manifest.precision, onnx, tuple(files))


def build(
    source: Source,
    out: Path,
    recipe: Recipe,
    *,
    shapes: ShapePlan | None = None,
    overwrite: bool = False,
    notify: Notify = lambda *_: None,
) -> EngineRecord:
    """Build the plans of a recipe and publish them with all that predicting and a rebuild need.

    Args:
        shapes: how the recipe's profiles were planned, where they were.
        notify: called with (what is being done, steps done, steps in all).
    Returns:
        What the engine's manifest says of it.
    Raises:
        ArtifactError: `out` is in the way.
        BackendError: the library is missing, or has no GPU to build on where it needs one.
        EngineError: the graph is not in the promised precision, or a target does not multiply in it, or the library
            refuses; nothing is published.
        ProfileError: a profile takes more than the model.
    """
    artifact.refuse_existing(out, "engine", overwrite)
    _check_precision(source, recipe)
    profiles = recipe.fit(int(source.manifest.settings["max_length"]))
    notify("reading the graph", 0, 1)
    network = read_network(recipe.library, source.path / source.onnx)
    gpu = None if recipe.targets else first_gpu()
    targets = (gpu.compute_capability,) if gpu else recipe.targets
    found = products(network)
    check_products(found, source)
    for target in recipe.targets:
        check_target(found, source, target)
    manifest = source.manifest
    with artifact.create(
        out,
        "engine",
        task=manifest.task,
        precision=source.precision,
        labels=manifest.labels,
        parents=source.parents,
        overwrite=overwrite,
    ) as draft:
        for name in source.files:
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, draft.path / name)
        record = EngineRecord(
            library=recipe.library,
            library_version=network.version,
            cuda_version=cuda_version(recipe.library),
            gpu=gpu and gpu.name,
            onnx=source.onnx,
            onnx_sha256=manifest.files[source.onnx].sha256,
            calibration_sha256=source.calibration_sha256,
            plans=_write_plans(draft, network, recipe, profiles, targets, notify),
            profiles=profiles,
            shapes=shapes or _kept_shapes(source, profiles),
            hardware_compatibility=recipe.hardware_compatibility,
            cuda_graphs=recipe.cuda_graphs,
            recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        )
        draft.settings = {**manifest.settings, "engine": record.model_dump(mode="json")}
    return record


def _kept_shapes(source: Source, profiles: Sequence[ShapeProfile]) -> ShapePlan | None:
    """How the profiles of an engine were planned, where it is built again with the same."""
    return source.engine.shapes if source.engine and source.engine.profiles == profiles else None


def _check_precision(source: Source, recipe: Recipe) -> None:
    if recipe.precision not in (None, source.precision):
        raise EngineError(
            f"{source.path} is in {source.precision.value}, and the recipe wants {recipe.precision.value}. An engine's "
            f"precision is that of its graph: bertfast export CHECKPOINT --precision {recipe.precision.value} --out DIR"
        )


def check_products(found: Sequence[Product], source: Source) -> None:
    """Raise EngineError where the products of a network are in another format than the artefact promises."""
    wanted = source.precision.value
    if wanted in ("int8", "fp8"):
        promised = int(source.manifest.settings.get("quantization", {}).get("quantized_weights", 1))
        counted = sum(product.weights for product in found if product.operands == wanted)
        if counted < promised:
            raise EngineError(
                f"{source.path / source.onnx} multiplies {counted:,} weights in {wanted}, and its manifest promises "
                f"{promised:,}. Export it again."
            )
        return
    held = all if wanted == "fp32" else any  # what leaves the range of a narrower format stays in a wider one
    if not held(_FORMATS[product.operands] == wanted for product in found):
        formats = ", ".join(sorted({_FORMATS[product.operands] for product in found}))
        raise EngineError(
            f"{source.path} is to execute in {wanted}, and the products of its graph are in {formats}. An engine's "
            f"precision is that of its graph: bertfast export CHECKPOINT --precision {wanted} --out DIR"
        )


def check_target(found: Sequence[Product], source: Source, target: str) -> None:
    """Raise EngineError where TensorRT for RTX has no kernels for a product on a target."""
    for product in found:
        for name in (_FORMATS[product.operands], _FORMATS[product.around]):
            if int(target.removeprefix("SM")) < _FIRST_TARGET[name]:
                raise EngineError(
                    f"{target} has no products in {name} in TensorRT for RTX, and {source.path / source.onnx} has "
                    f"'{product.name}' in it. Take {target} out of targets (the first is SM{_FIRST_TARGET[name]}), or "
                    "export in fp16."
                )


def _write_plans(
    draft: Draft,
    network: Network,
    recipe: Recipe,
    profiles: Sequence[ShapeProfile],
    targets: Sequence[str],
    notify: Notify,
) -> tuple[PlanRecord, ...]:
    cache = draft.path / TIMING_CACHE
    records = []
    for done, target in enumerate(targets):
        notify(f"building for {target}", done, len(targets))
        timed = cache.read_bytes() if cache.is_file() else b""
        plan, timed = build_plan(network, recipe, profiles, target if recipe.targets else None, timed)
        file = draft.path / f"{target}.plan"
        file.write_bytes(plan)
        if timed:
            cache.write_bytes(timed)
        records.append(PlanRecord(file=file.name, sha256=artifact.sha256_of(file), target=target))
    notify("building", len(targets), len(targets))
    return tuple(records)
