from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertfast.config import TrainConfig
from bertfast.train.report import alarms, read_rows, thinned, write_report

CONFIG = TrainConfig(learning_rate=1e-3)
RESULT = {
    "heldout_mlm": 5.618,
    "heldout_nsp": 0.581,
    "heldout_mlm_accuracy": 0.213,
    "heldout_nsp_accuracy": 356 / 512,
    "heldout_mlm_count": 4321,
    "heldout_nsp_count": 512,
    "unigram_entropy": 6.27,
    "nsp_majority": 0.51,
}


def training_row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "elapsed_s": step / 10,
        "train_mlm": 5.6 + 4 * math.exp(-step / 200),
        "train_nsp": 0.6,
        "real_tokens_per_s": 5000.0 + step % 3,
        "grad_norm": 1.0,
        "learning_rate": 1e-3 * (1 - step / 4000),
    }


def write_rows(logs: Path, rows: list[dict[str, Any]]) -> Path:
    logs.mkdir(exist_ok=True)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return logs


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    rows = [training_row(step) for step in range(10, 901, 10)]
    evaluations = [
        {"step": 450, "elapsed_s": 45.5, **RESULT, "heldout_mlm": 5.9},
        {"step": 900, "elapsed_s": 91.0, **RESULT},
    ]
    return write_rows(tmp_path / "logs", sorted([*rows, *evaluations], key=lambda row: row["elapsed_s"]))


def cells(path: Path) -> dict[str, list[str]]:
    """The report's table rows by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("|")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


def test_every_figure_stands_beside_its_baseline(logs: Path) -> None:
    path = write_report(logs, RESULT, title="base", config=CONFIG, total_steps=900, facts={"device": "a toaster"})
    assert path == logs / "report.md"
    table = cells(path)
    assert table["MLM loss, nats"] == ["5.618", "", "unigram entropy 6.270"]
    assert table["MLM accuracy"][:2] == ["21.3%", "20.1% to 22.5% of 4,321"]
    assert table["NSP loss, nats"] == ["0.581", "", "chance 0.693"]
    assert table["NSP accuracy"] == ["69.5%", "65.4% to 73.4% of 512", "always the commoner answer 51.0%"]
    assert (table["steps"], table["time"], table["real tokens/s, median"]) == (["900"], ["91 s"], ["5,001"])
    assert table["device"] == ["a toaster"]
    assert "packing efficiency, median" not in table
    assert path.read_text().startswith("# base\n")
    assert "## Alarms\n\nNone.\n" in path.read_text()


def test_new_keys_are_told_and_drawn_once_they_come(logs: Path) -> None:
    write_report(logs, RESULT, title="base", config=CONFIG, total_steps=900)
    before = (logs / "curves.png").read_bytes()
    more = {"loader_wait_share": 0.012, "packing_efficiency": 0.987, "mfu": 0.412}
    write_rows(
        logs, [{**row, **more} if "grad_norm" in row else dict(row) for row in read_rows(logs / "metrics.jsonl")]
    )
    table = cells(write_report(logs, {**RESULT}, title="base", config=CONFIG, total_steps=900))
    assert tuple(table[f"{name}, median"] for name in ("waiting for data", "packing efficiency", "MFU")) == (
        ["1.2%"],
        ["98.7%"],
        ["41.2%"],
    )
    assert len((logs / "curves.png").read_bytes()) > len(before)  # two pictures more


def test_alarms_are_listed_with_the_step_at_which_they_came(tmp_path: Path) -> None:
    rows = [{**training_row(step), "train_mlm": 6.3, "train_nsp": 0.3} for step in range(10, 3001, 10)]
    report = write_report(
        write_rows(tmp_path / "logs", rows), RESULT, title="stuck", config=CONFIG, total_steps=3000
    ).read_text()
    (alarm,) = alarms(rows, CONFIG, 3000, RESULT["unigram_entropy"])
    assert f"- Step {alarm.step:,}, plateau: {alarm.text}" in report


@pytest.mark.parametrize(
    ("rows", "result"),
    [([], {}), ([training_row(1)], {}), ([training_row(1), {"step": 1, "elapsed_s": 2.0, **RESULT}], RESULT)],
)
def test_a_report_is_made_of_whatever_there_is(
    tmp_path: Path, rows: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    """No step logged, nothing held out, one evaluation only."""
    text = write_report(
        write_rows(tmp_path / "logs", rows), result, title="short", config=CONFIG, total_steps=1
    ).read_text()
    assert ("held-out" in text) == bool(result)
    assert ("| steps | 1 |" in text) == bool(rows)
    assert (tmp_path / "logs" / "curves.png").stat().st_size > 0


def test_without_matplotlib_there_is_the_text_alone(logs: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pathlib import Path\n"
        "import importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'matplotlib' else real(name, *rest)\n"
        "from bertfast.config import TrainConfig\n"
        "from bertfast.train.report import write_report\n"
        f"write_report(Path({str(logs)!r}), {RESULT!r}, title='plain', config=TrainConfig(), total_steps=900)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (logs / "curves.png").exists()
    assert "pip install 'bertfast[bench]'" in (logs / "report.md").read_text()
    assert cells(logs / "report.md")["NSP accuracy"][0] == "69.5%"


def test_drawing_leaves_matplotlib_as_it_was(logs: Path) -> None:
    code = (
        "import json, matplotlib; from pathlib import Path; before = dict(matplotlib.rcParams)\n"
        "from bertfast.train.report import draw_curves, read_rows\n"
        f"draw_curves(read_rows(Path({str(logs)!r}) / 'metrics.jsonl'), Path({str(logs / 'c.png')!r}))\n"
        "import matplotlib.pyplot as plt; after = dict(matplotlib.rcParams)\n"
        "changed = [name for name in after if after[name] != before.get(name)]\n"
        "print(json.dumps({'changed': changed, 'figures': plt.get_fignums()}))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(said) == {"changed": [], "figures": []}
    assert (logs / "c.png").stat().st_size > 0


def test_long_runs_are_thinned_to_means_of_neighbours() -> None:
    steps, values = thinned(list(range(100_000)), [float(n % 2) for n in range(100_000)])
    assert len(steps) == len(values) == 500
    assert values == [0.5] * 500
    assert steps[0] == pytest.approx(99.5)
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])
