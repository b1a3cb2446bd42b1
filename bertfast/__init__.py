"""bertfast: BERT encoders from raw text to the fastest engine, with proof of what that costs in accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bertfast.errors import (
    ArtifactError,
    BackendError,
    BertfastError,
    CheckError,
    ConfigError,
    DataError,
    DivergenceError,
)

if TYPE_CHECKING:
    from bertfast.backends.predictor import Predictor, load

__all__ = [
    "ArtifactError",
    "BackendError",
    "BertfastError",
    "CheckError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "Predictor",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in ("Predictor", "load"):  # resolved on use, so that `import bertfast` stays light
        from bertfast.backends import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'bertfast' has no attribute '{name}'")
