from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.engine_bench import Bench


@pytest.fixture
def bench(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path / "engine", exported, monkeypatch)
    with made.source:
        yield made
