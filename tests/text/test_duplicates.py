from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertfast.text import duplicates
from bertfast.text.duplicates import duplicate_share, sentence_hash


def hashes_of(sentences: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(sentence_hash(sentence.encode()) for sentence in sentences), np.uint64)


def share_of(folder: Path, hashes: np.ndarray, max_held: int = 100) -> float:
    hashes.tofile(folder / "hashes.bin")
    return duplicate_share(folder / "hashes.bin", max_held)


def test_the_share_is_exact_where_all_are_held(tmp_path: Path) -> None:
    assert share_of(tmp_path, hashes_of(["a", "b", "a", "c", "a"])) == pytest.approx(0.4)
    assert share_of(tmp_path, hashes_of(["a", "b"])) == 0
    assert share_of(tmp_path, hashes_of([])) == 0


def test_the_estimate_is_near_and_knows_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that stands everywhere is not missed, though few of the different sentences are held."""
    monkeypatch.setattr(duplicates, "_BLOCK", 1000)
    different = [f"sentence {i}" for i in range(20_000)]
    hashes = hashes_of([*different, *different[:5000], *["All rights reserved."] * 15_000])
    orders = [np.random.default_rng(seed).permutation(hashes) for seed in range(3)]
    shares = {share_of(tmp_path, order, max_held=4096) for order in (hashes, *orders)}
    assert len(shares) == 1
    # 2,048 to 4,096 hashes are held: a standard error of at most 1 / sqrt(2048) of the different half, and five of them
    assert shares.pop() == pytest.approx(0.5, abs=5 * 0.5 / 2048**0.5)
