"""The state of a run that is under way, in `OUT.run` beside the checkpoint that it is to become.

OUT.run/state-00000500/   weights, optimiser moments and the step: an artefact, so it is whole or not there. Data
                          order, learning rate and random numbers are functions of the step, so there is no more
OUT.run/metrics.jsonl     a line for each logged step and each evaluation
OUT.run/tensorboard/
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bertfast import artifact
from bertfast.artifact import Manifest
from bertfast.errors import ArtifactError, ConfigError
from bertfast.model.weights import read_tensors, save_tensors
from bertfast.train.distributed import ALONE, World, placed_like, whole

# Settings that may change when a run goes on, because the data and its order stay the same. (Another number of
# threads or of processes rounds differently and draws other dropout: the weights are then not the same to the bit.)
_FREE_TO_CHANGE = {
    "threads",
    "workers",
    "sharding",
    "micro_batch_tokens",
    "checkpoint_every_steps",
    "keep_states",
    "evaluate_every_steps",
    "log_every_steps",
}


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what it needs to go on.

    Attributes:
        out: the checkpoint that the run is to become.
        identity: what must be the same for a run to go on: settings, data, starting point.
        world: the processes of the run; the first of them writes.
    """

    out: Path
    identity: dict[str, Any]
    world: World = ALONE

    @property
    def path(self) -> Path:
        return self.out.with_name(self.out.name + ".run")

    @property
    def logs(self) -> Path:
        return self.path / artifact.LOGS

    def result(self) -> dict[str, float] | None:
        """What the run ended with, where it has ended: the checkpoint at `out` is of this very run."""
        if not (self.out / artifact.MANIFEST).is_file():
            return None
        settings = artifact.open_manifest(self.out, "checkpoint").settings
        self._refuse_other_run(self.out, {key: value for key, value in settings.items() if key != "result"})
        return dict(settings["result"])

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Make the directory, or find it as an earlier run left it.

        Raises:
            ArtifactError: a run lies there unfinished and neither `resume` nor `overwrite` was asked for.
            ConfigError: it was started with other settings or data.
        """
        if self.world.leads:
            artifact.refuse_existing(self.out, "checkpoint", overwrite)
            if overwrite and not resume:
                artifact.remove_own_directory(self.path)
            if self.path.exists() and not resume:
                raise ArtifactError(
                    f"an unfinished run lies in {self.path}. Continue it with --resume, or start anew with --overwrite."
                )
            artifact.make_own_directory(self.path)
        self.world.wait()
        if (latest := self.latest_state()) is not None:
            self._refuse_other_run(self.path, latest[1].settings["identity"])

    def latest_state(self) -> tuple[Path, Manifest] | None:
        """The newest whole state, or None where none was saved yet; a warning for each that is not whole.

        Raises:
            ArtifactError: there are states, and none of them is whole.
        """
        states = sorted((path for path in self.path.glob("state-*") if path.suffix == ""), reverse=True)
        for path in states:
            try:
                return path, artifact.open_manifest(path, "training-state")
            except ArtifactError as error:
                if path == states[-1]:
                    raise
                warnings.warn(f"{error} The run goes on from an older state.", stacklevel=2)
        return None

    def save_state(self, step: int, model: nn.Module, optimizer: Optimizer, keep: int) -> None:
        """Write the state after `step` steps and, once it is whole, remove all but the newest `keep`."""
        weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        moments = {name: whole(tensor) for name, tensor in _moments(model, optimizer).items()}
        if not self.world.leads:
            return
        target = self.path / f"state-{step:08d}"
        with artifact.create(target, "training-state", overwrite=True) as draft:
            save_tensors(weights, draft.path / "model.safetensors")
            save_tensors(moments, draft.path / "optimizer.safetensors")
            draft.settings = {"step": step, "identity": self.identity}
        states = sorted(path for path in self.path.glob("state-*") if path.suffix == "" and path <= target)
        for path in states[:-keep]:
            shutil.rmtree(path)

    def load_state(self, model: nn.Module, optimizer: Optimizer) -> int:
        """Restore the newest whole state; returns the number of steps done, 0 where there is none."""
        if (latest := self.latest_state()) is None:
            return 0
        path, manifest = latest
        weights = read_tensors(path / "model.safetensors")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(placed_like(weights[name], tensor))
        _restore_moments(model, optimizer, read_tensors(path / "optimizer.safetensors"))
        return int(manifest.settings["step"])

    def _refuse_other_run(self, place: Path, earlier: dict[str, Any]) -> None:
        mine = json.loads(json.dumps(self.identity))
        for key in sorted(set(mine) | set(earlier)):
            if key not in _FREE_TO_CHANGE and mine.get(key) != earlier.get(key):
                raise ConfigError(
                    f"{place} was started with {key} = {earlier.get(key)!r}, and now it is {mine.get(key)!r}. "
                    "Resume with the same settings and data, or start anew with --overwrite."
                )


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_moments(model: nn.Module, optimizer: Optimizer, moments: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: _restored(key, moments[f"{name}/{key}"], parameter) for key in ("step", "exp_avg", "exp_avg_sq")
        }


def _restored(key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    return value.to(parameter.device) if key == "step" else placed_like(value, parameter)
