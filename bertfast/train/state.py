"""The state of a run that is under way, in `OUT.run` beside the checkpoint that it is to become.

OUT.run/state-00000500/   weights, optimiser moments and the step: an artefact, so it is whole or not there
OUT.run/metrics.jsonl     a line for each logged step and each evaluation
OUT.run/tensorboard/
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW

from bertfast import artifact
from bertfast.errors import ArtifactError, ConfigError
from bertfast.model.weights import read_tensors, save_tensors

# Settings that may change when a run goes on. (Another number of threads rounds differently: the weights are then
# not the same to the bit.)
_FREE_TO_CHANGE = {"threads", "checkpoint_every_steps", "log_every_steps"}


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what it needs to go on.

    Attributes:
        out: the checkpoint that the run is to become.
        identity: what must be the same for a run to go on: settings, data, starting point.
    """

    out: Path
    identity: dict[str, Any]

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
        artifact.refuse_existing(self.out, "checkpoint", overwrite)
        if overwrite and not resume:
            artifact.remove_own_directory(self.path)
        if self.path.exists() and not resume:
            raise ArtifactError(
                f"an unfinished run lies in {self.path}. Continue it with --resume, or start anew with --overwrite."
            )
        artifact.make_own_directory(self.path)
        latest = self.latest_state()
        if latest is not None:
            self._refuse_other_run(self.path, artifact.open_manifest(latest, "training-state").settings["identity"])

    def latest_state(self) -> Path | None:
        """The newest whole state, or None."""
        states = sorted(path for path in self.path.glob("state-*") if path.suffix == "")
        return states[-1] if states else None

    def save_state(self, step: int, model: nn.Module, optimizer: AdamW) -> None:
        """Write the state after `step` steps and, once it is whole, remove the older ones."""
        target = self.path / f"state-{step:08d}"
        with artifact.create(target, "training-state", overwrite=True) as draft:
            save_tensors(model.state_dict(), draft.path / "model.safetensors")
            save_tensors(_moments(model, optimizer), draft.path / "optimizer.safetensors")
            draft.settings = {"step": step, "identity": self.identity}
        for path in self.path.glob("state-*"):
            if path != target:
                shutil.rmtree(path)

    def load_state(self, model: nn.Module, optimizer: AdamW) -> int:
        """Restore the newest state; returns the number of steps done, 0 where there is none."""
        latest = self.latest_state()
        if latest is None:
            return 0
        manifest = artifact.open_manifest(latest, "training-state")
        model.load_state_dict(read_tensors(latest / "model.safetensors"))
        _restore_moments(model, optimizer, read_tensors(latest / "optimizer.safetensors"))
        return int(manifest.settings["step"])

    def _refuse_other_run(self, place: Path, earlier: dict[str, Any]) -> None:
        mine = json.loads(json.dumps(self.identity))
        for key in sorted(set(mine) | set(earlier)):
            if key not in _FREE_TO_CHANGE and mine.get(key) != earlier.get(key):
                raise ConfigError(
                    f"{place} was started with {key} = {earlier.get(key)!r}, and now it is {mine.get(key)!r}. "
                    "Resume with the same settings and data, or start anew with --overwrite."
                )


def _moments(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_moments(model: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: tensors[f"{name}/{key}"].to(parameter.device if key != "step" else tensors[f"{name}/{key}"].device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
