"""How much of a text repeats itself, estimated in bounded memory."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np

MAX_HELD = 1 << 20
_BLOCK = 1 << 18


def sentence_hash(sentence: bytes) -> bytes:
    """Eight bytes that stand for a sentence."""
    return blake2b(sentence, digest_size=8).digest()


def duplicate_share(hashes: Path, max_held: int = MAX_HELD) -> float:
    """The share of sentences that repeat an earlier one, from the hashes of all sentences in any order.

    It is exact up to `max_held` different ones. Beyond that, only the hashes below a threshold of 2^-k are held, and
    there are 2^k times as many different sentences, with a standard error of 1 / sqrt(hashes held): at most 0.15
    points where a million may be held. (Counting repeats in such a sample instead would miss one line that stands
    everywhere.) The result depends on nothing but the text.

    Args:
        hashes: a file of them, read in blocks.
    """
    halvings = total = 0
    distinct = np.zeros(0, np.uint64)
    with hashes.open("rb") as stream:
        while len(block := np.fromfile(stream, np.uint64, _BLOCK)):
            total += len(block)
            distinct = np.unique(np.concatenate([distinct, block[block <= _threshold(halvings)]]))
            while len(distinct) > max_held:
                halvings += 1
                distinct = distinct[distinct <= _threshold(halvings)]
    return max(0.0, 1 - len(distinct) * 2**halvings / total) if total else 0.0


def _threshold(halvings: int) -> np.uint64:
    return np.uint64(2 ** (64 - halvings) - 1)
