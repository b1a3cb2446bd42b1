"""How an engine is to be built: the settings of a recipe, each refused where its library does not have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from bertfast.backends.engine_plan import HardwareCompatibility, Library
from bertfast.config import Config, Precision, ShapeProfile, presets, read_settings
from bertfast.errors import ConfigError, ProfileError, did_you_mean

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


class Recipe(Config):
    """How an engine is built.

    Attributes:
        precision: what the ONNX artefact must be in; whatever it is in when not given. TensorRT takes the precision
            from the graph and has no switch for it.
        profiles: one optimisation profile each.
        cut_to_model: profiles that reach beyond the model's longest sequence are cut there, and those that begin
            beyond it are left out; otherwise they are refused.
        targets: compute capabilities, a plan for each (TensorRT for RTX; TensorRT builds for the GPU that it runs on).
        optimization_level: how long the builder searches, 0 to 5; the library's own when not given.
        workspace_bytes: most scratch memory on the GPU that a layer may ask for; all of it when not given.
        hardware_compatibility: which other GPUs the plan is to run on (TensorRT).
        version_compatible: refused: such a plan brings host code along, which no runtime of ours executes.
        timing_cache: whether what the builder timed travels along for the next build (TensorRT).
        cuda_graphs: whether the runtime is to record CUDA graphs for shapes of small batches that come again.
    """

    library: Library
    precision: Precision | None = None
    profiles: tuple[ShapeProfile, ...] = Field(min_length=1)
    cut_to_model: bool = False
    targets: tuple[str, ...] = ()
    optimization_level: int | None = Field(None, ge=0, le=5)
    workspace_bytes: PositiveInt | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    timing_cache: bool = False
    cuda_graphs: bool = False

    @model_validator(mode="after")
    def _fits_library(self) -> Self:
        if self.version_compatible:
            raise ConfigError(
                "version_compatible makes a plan with host code in it, which runs when it is loaded: our runtimes "
                "refuse that. Take it out, and build again for another version: bertfast build ENGINE --rebuild"
            )
        if self.library == "tensorrt":
            if self.targets:
                raise ConfigError(
                    f"targets = {list(self.targets)} are of TensorRT for RTX: TensorRT builds for the GPU that it runs "
                    'on. Take targets out, or set library = "tensorrt-rtx".'
                )
            return self
        for name, why in _NOT_OF_RTX.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(f"{name} is not of TensorRT for RTX: {why}. Take it out of the recipe.")
        _check_targets(self.targets)
        return self

    def fit(self, max_length: int) -> tuple[ShapeProfile, ...]:
        """The profiles for a model that takes so many tokens; equal ones once.

        Raises:
            ProfileError: one reaches beyond the model, and the recipe does not say that it is to be cut.
        """
        kept = [one for one in self.profiles if one.length[0 if self.cut_to_model else 2] <= max_length]
        beyond = [one for one in self.profiles if one not in kept]
        if beyond and not (self.cut_to_model and kept):
            raise ProfileError(
                f"profile {beyond[0]} takes sequences of {beyond[0].length[2]} tokens, and the model takes "
                f"{max_length}. Set length to {max_length} at the most, or cut_to_model = true."
            )
        return tuple(dict.fromkeys(_cut(profile, max_length) for profile in kept))


_NOT_OF_RTX = {
    "hardware_compatibility": "name each compute capability in targets",
    "timing_cache": "it times nothing while it builds",
}


def _cut(profile: ShapeProfile, max_length: int) -> ShapeProfile:
    least, best, most = (min(length, max_length) for length in profile.length)
    return ShapeProfile(batch=profile.batch, length=(least, best, most))


def _check_targets(targets: tuple[str, ...]) -> None:
    known = ", ".join(TARGETS)
    if not targets:
        raise ConfigError(f'TensorRT for RTX builds for named GPUs. Give targets, such as targets = ["SM89"]: {known}.')
    for target in targets:
        if target == "SM90":
            raise ConfigError("SM90 (H100, H200) is none of TensorRT for RTX's targets. Build with library = tensorrt.")
        if target not in TARGETS:
            raise ConfigError(f"target {target} is not one of {known}.{did_you_mean(target, TARGETS)}")
    if len(set(targets)) < len(targets):
        raise ConfigError(f"targets = {list(targets)} names one twice.")


def read_recipe(file: Path, overrides: Sequence[str] = (), targets: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or from a TOML file.

    Args:
        overrides: `key=value`, on top of it.
        targets: what is to stand in the place of the recipe's own, where something is given.
    Raises:
        ConfigError: there is no such recipe, or a setting is unknown, out of range or not of its library.
    """
    values = read_settings(file, overrides, "build")
    return Recipe.parse(values | ({"targets": targets} if targets else {}), str(file))


def recipe_names() -> list[str]:
    """The recipes that the package carries."""
    return list(presets("build"))
