"""The state of a run that is under way, in `OUT.run` beside the checkpoint that it is to become.

OUT.run/state-00000500/   weights, optimiser moments, the step, and the best weights so far where these are to be
                          kept: an artefact, so it is whole or not there. Data order, learning rate and random
                          numbers are functions of the step, so there is no more
OUT.run/logs/             metrics.jsonl, a line for each logged step and each evaluation, and tensorboard/
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bertfast import artifact
from bertfast.errors import ArtifactError, ConfigError
from bertfast.model.tensors import read_tensors, save_tensors
from bertfast.train.distributed import ALONE, World, placed_like, whole
from bertfast.train.selection import Best

# Settings that may change when a run goes on, because the data and its order stay the same. (Another number of
# threads or of processes rounds differently and draws other dropout: the weights are then not the same to the bit.)
_FREE_TO_CHANGE = {
    "threads",
    "workers",
    "sharding",
    "micro_batch_tokens",
    "row_tokens",
    "checkpoint_every_steps",
    "keep_states",
    "evaluate_every_steps",
    "log_every_steps",
    "gradient_checkpointing",
}
# What may change too, since it is the remedy for a run that diverges, but not without a word.
_SAID_WHEN_CHANGED = {"learning_rate", "max_grad_norm", "precision"}


@dataclass(frozen=True)
class Progress:
    """How far a run has come, beside its weights and moments.

    Attributes:
        step: the steps done.
        train_s: the seconds in them.
        best: the best evaluation, where they are compared.
    """

    step: int = 0
    train_s: float = 0.0
    best: Best | None = None


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
        """What the run ended with, where it has ended: the checkpoint at `out` is of this very run.

        Raises:
            ConfigError: it ended with other settings, which an ended run cannot go on with.
        """
        if not (self.out / artifact.MANIFEST).is_file():
            return None
        settings = artifact.open_manifest(self.out, "checkpoint").settings
        self._refuse_other_run(
            self.out, {key: value for key, value in settings.items() if key != "result"}, _FREE_TO_CHANGE
        )
        return dict(settings["result"])

    @contextmanager
    def begun(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Make the directory, or find it as an earlier run left it; it is this run's alone while the block lasts.

        Raises:
            ArtifactError: a run lies there unfinished and neither `resume` nor `overwrite` was asked for, or another
                process is at it.
            ConfigError: it was started with other settings or data.
        """
        with ExitStack() as held:
            if self.world.leads:
                artifact.refuse_existing(self.out, "checkpoint", overwrite)
                self._find(held, resume=resume, overwrite=overwrite)
            self.world.wait()
            yield

    def _find(self, held: ExitStack, *, resume: bool, overwrite: bool) -> None:
        if self.path.exists() and not (resume or overwrite):
            raise ArtifactError(
                f"an unfinished run lies in {self.path}. Continue it with --resume, or start anew with --overwrite."
            )
        artifact.make_own_directory(self.path)
        held.enter_context(artifact.hold(self.path, "training"))
        if not resume:
            for path in (*self.path.glob("state-*"), *self.path.glob(artifact.LOGS)):
                shutil.rmtree(path)  # a state that stayed would be taken for this run's
        elif (latest := self._newest_whole_state()) is not None:
            earlier = artifact.open_manifest(latest, verify_hashes=False).settings["identity"]
            self._refuse_other_run(self.path, earlier, _FREE_TO_CHANGE | _SAID_WHEN_CHANGED)

    def states(self) -> list[Path]:
        """The saved states, the oldest first."""
        return sorted(path for path in self.path.glob("state-*") if path.suffix == "")

    def _newest_whole_state(self) -> Path | None:
        """The newest state that is what its hashes say, or None where none was saved yet.

        One that is not whole is put aside, with a warning, so that it neither counts nor is in the way.

        Raises:
            ArtifactError: there are states, and none of them is whole.
        """
        states = self.states()
        for path in reversed(states):
            try:
                artifact.open_manifest(path, "training-state")
            except ArtifactError as error:
                if path == states[0]:
                    raise ArtifactError(
                        f"{error} No older state is whole either: start the run anew with --overwrite."
                    ) from None
                aside = path.with_name(path.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                warnings.warn(f"{error} The run goes on from an older state.", stacklevel=2)
            else:
                return path
        return None

    def save_state(self, progress: Progress, model: nn.Module, optimizer: Optimizer, keep: int) -> None:
        """Write the state of a run and, once it is whole, remove all but the newest `keep`."""
        weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        moments = {name: whole(tensor) for name, tensor in _moments(model, optimizer).items()}
        if not self.world.leads:
            return
        with artifact.create(self._state(progress.step), "training-state", overwrite=True) as draft:
            save_tensors(weights, draft.path / "model.safetensors")
            save_tensors(moments, draft.path / "optimizer.safetensors")
            draft.settings = {"step": progress.step, "train_s": progress.train_s, "identity": self.identity}
            if (best := progress.best) is not None:
                save_tensors(best.weights, draft.path / "best.safetensors")
                draft.settings["best"] = {"step": best.step, "value": best.value, "since": best.since}
        for path in self.states()[:-keep]:
            shutil.rmtree(path)

    def load_state(self, model: nn.Module, optimizer: Optimizer) -> Progress:
        """Restore the newest state; returns how far it has come, which is nowhere where there is none.

        The first process says which one it is, so that all go on from the same.

        Raises:
            ConfigError: this process does not see it.
        """
        states = self.states() if self.world.leads else []
        if not (step := self.world.first(int(states[-1].name.removeprefix("state-")) if states else 0)):
            return Progress()
        path = self._state(step)
        if not path.is_dir():
            raise ConfigError(
                f"{path} is not there for process {self.world.rank}. Put --out where all processes see it."
            )
        weights = read_tensors(path / "model.safetensors")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(placed_like(weights[name], tensor))
        _restore_moments(model, optimizer, read_tensors(path / "optimizer.safetensors"))
        settings = artifact.open_manifest(path, verify_hashes=False).settings
        best = settings.get("best")
        return Progress(
            step, settings["train_s"], best and Best(**best, weights=read_tensors(path / "best.safetensors"))
        )

    def _state(self, step: int) -> Path:
        return self.path / f"state-{step:08d}"

    def _refuse_other_run(self, place: Path, earlier: dict[str, Any], may_change: set[str]) -> None:
        mine = json.loads(json.dumps(self.identity))
        changed = [key for key in sorted(set(mine) | set(earlier)) if mine.get(key) != earlier.get(key)]
        for key in changed:
            if key not in may_change:
                raise ConfigError(
                    f"{place} was started with {key} = {earlier.get(key)!r}, and now it is {mine.get(key)!r}. "
                    "Resume with the same settings and data, or start anew with --overwrite."
                )
            if key in _SAID_WHEN_CHANGED:
                warnings.warn(f"the run goes on with {key} = {mine[key]} instead of {earlier.get(key)}.", stacklevel=2)


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_moments(model: nn.Module, optimizer: Optimizer, moments: dict[str, Tensor]) -> None:
    for place, value in moments.items():
        name, _, key = place.rpartition("/")
        parameter = model.get_parameter(name)
        optimizer.state[parameter][key] = _restored(key, value, parameter)


def _restored(key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    return value.to(parameter.device) if key == "step" else placed_like(value, parameter)
