"""Who takes part: every artefact in every backend of ours that runs it, and peers in environments of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.backends import ServedModel, backends_for
from bertfast.bench.results import OUR_SYSTEM
from bertfast.errors import ConfigError, did_you_mean

OURS = Path(__file__).with_name("ours.py")


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        name: what the tables call it.
        system: `bertfast`, or the peer's name.
        backend: ours, or the peer's variant.
        model: what it answers with.
        module: the file that child.py loads.
        python: the interpreter of a peer's environment; None for ours.
        options: those of the peer's variant.
        settings: of the task: for ours those that are to be others than the artefact's, for a peer all.
    """

    name: str
    system: str
    backend: str
    model: ServedModel
    module: Path
    python: Path | None
    options: Mapping[str, Any]
    settings: Mapping[str, Any]

    def job(self, threads: int | None) -> dict[str, Any]:
        """What child.py hands to the module's `load`."""
        return {
            "model": str(self.model.path.resolve()),
            "backend": self.backend,
            "options": dict(self.options),
            "task": self.model.task.name,
            "labels": self.model.context.labels,
            "max_length": self.model.context.max_length,
            "threads": threads,
            "settings": dict(self.settings),
        }


def our_candidates(
    models: Sequence[ServedModel], backends: Sequence[str], settings: Mapping[str, Any]
) -> list[Candidate]:
    """Each model in each installed backend that runs it, or in those among `backends`, where any are named.

    Raises:
        ConfigError: none of the models runs in any of them.
    """
    found: list[Candidate] = []
    for number, model in enumerate(models, 1):
        alone = len([other for other in models if other.kind == model.kind]) == 1
        for backend in backends_for(model):
            if backends and backend not in backends:
                continue
            name = f"{backend} packed" if model.packed else backend
            name = name if alone else f"{model.name} {name}"
            name += f" ({number})" if name in {item.name for item in found} else ""
            found.append(Candidate(name, OUR_SYSTEM, backend, model, OURS, None, {}, settings))
    if not found:
        wanted = ", ".join(backends) or "any backend"
        able = {model.name: ", ".join(backends_for(model)) or "nothing that is installed" for model in models}
        said = ", ".join(f"{name} runs in {runtimes}" for name, runtimes in able.items())
        raise ConfigError(
            f"no artefact here runs in {wanted}: {said}. Name one of these, or install what 'bertfast doctor' names."
        )
    return found


def peer_candidates(peers: Sequence[str], models: Sequence[ServedModel]) -> list[Candidate]:
    """The variants of peers, with the first checkpoint among the models.

    Args:
        peers: DIR or DIR:VARIANT. The folder has peer.py, variants.toml (options by variant) and the environment
            .venv.
    Raises:
        ConfigError: a folder is no peer, or lacks its environment or the variant; or there is no checkpoint.
    """
    if not peers:
        return []
    model = next((model for model in models if model.kind == "checkpoint"), None)
    if model is None:
        raise ConfigError("peers run checkpoints, and no artefact here is one. Add the checkpoint to the artefacts.")
    settings = model.context.settings.model_dump(mode="json")
    found = []
    for peer in peers:
        folder, python, variants = _open_peer(peer)
        for variant, options in variants.items():
            name = f"{folder.name} {variant}"
            found.append(Candidate(name, folder.name, variant, model, folder / "peer.py", python, options, settings))
    return found


def _open_peer(peer: str) -> tuple[Path, Path, dict[str, dict[str, Any]]]:
    """A peer's folder, its interpreter, and the options of the variants that are asked for."""
    start, _, variant = (peer, "", "") if Path(peer).is_dir() else peer.rpartition(":")
    folder = Path(start).resolve()
    if not start or not (folder / "peer.py").is_file() or not (folder / "variants.toml").is_file():
        raise ConfigError(
            f"{peer} is not a peer: give a folder with peer.py and variants.toml, or such a folder and :VARIANT."
        )
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"{folder} has no environment (.venv). 'make peers' installs it.")
    variants = tomllib.loads((folder / "variants.toml").read_text(encoding="utf-8"))
    if variant and variant not in variants:
        known = ", ".join(variants)
        raise ConfigError(f"'{variant}' is not a variant of {folder}: {known}.{did_you_mean(variant, variants)}")
    return folder, python, {variant: variants[variant]} if variant else variants
