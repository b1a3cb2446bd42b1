"""The error tree. Every message states the value, the limit and the remedy.

BertfastError
├── ConfigError      a setting that is unknown, of the wrong type or out of range
├── DataError        a file or a row that cannot be read as what it was given as
├── ArtifactError    a directory that is absent, torn, of another kind, or already there
├── BackendError     a runtime that is missing, or that executes in another precision than promised
├── EngineError      an engine that cannot be built, or that must not be loaded here
├── ProfileError     a shape that an engine's profiles do not take
├── CheckError       an exported model that does not reproduce its source
├── AccuracyError    a precision that costs more accuracy than is allowed (exit status 3: do not ship)
├── WorkerError      a process that did part of the work and was killed
└── DivergenceError  training that has left the finite numbers
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LIKENESS = 0.65  # of 1; at difflib's 0.6 files are alike that share little but their suffix


class BertfastError(Exception):
    """Anything that the user can mend. The command line prints it and exits with `exit_status`."""

    exit_status = 2


class ConfigError(BertfastError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(BertfastError):
    """A file or a row cannot be read as what it was given as."""


class ArtifactError(BertfastError):
    """An artefact is absent, torn, of another kind, or in the way."""


class BackendError(BertfastError):
    """A runtime is missing or does not execute in the promised precision."""


class EngineError(BertfastError):
    """An engine cannot be built, or must not be loaded here."""


class ProfileError(BertfastError):
    """A shape is in none of an engine's profiles, or a profile takes more than the model."""


class CheckError(BertfastError):
    """An exported model does not reproduce its source."""


class AccuracyError(BertfastError):
    """A precision costs more accuracy than is allowed."""

    exit_status = 3


class WorkerError(BertfastError):
    """A process that did part of the work was killed."""


class DivergenceError(BertfastError):
    """Training has left the finite numbers."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest of `known`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_LIKENESS)
    return f" Did you mean '{close[0]}'?" if close else ""
