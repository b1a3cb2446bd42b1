"""Logits as probabilities, in float64 and without overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Probabilities [..., C] of which those of the last axis, which may be empty, sum to 1."""
    wide = logits.astype(np.float64)
    exponentials: npt.NDArray[np.float64] = np.exp(wide - wide.max(axis=-1, keepdims=True, initial=-np.inf))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def sigmoid(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The probability of each logit by itself."""
    probabilities: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return probabilities
