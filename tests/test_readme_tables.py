"""benchmarks/tables.py: the README's tables are those of the recorded results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import finetune, tables
from bertfast.bench.figures import run_line
from bertfast.bench.report import markdown_table
from bertfast.errors import DataError
from tests.bench.made import measured, results

RUN = results(measured("torch"), measured("onnx", 200.0, lost=3, gained=1))
PAGE = "before\n<!-- table:brief from results/a.json -->\nold\n<!-- end -->\nbetween\n<!-- end -->\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(RUN.model_dump_json())
    run = {"data_set": "sst2", "settings": {"task": "classify"}}  # not those of the suite
    (tmp_path / "results" / "runs.json").write_text(json.dumps({"runs": [run]}))
    return tmp_path


def test_the_readme_is_what_is_generated() -> None:
    text = (tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.rewrite(text, tables.ROOT) == text


def test_a_table_is_made_anew_and_the_rest_stays(root: Path) -> None:
    made = tables.rewrite(PAGE, root)
    assert made.startswith("before\n<!-- table:brief from results/a.json -->\n\n| candidate |")
    assert markdown_table(RUN, brief=True) in made
    assert f"\n\ndev.tsv, {run_line(RUN)} All samples: `a.json`.\n\n" in made
    assert "1,000 rows; a CPU, 2 cores, 8 GiB, 2 threads; 3 interleaved repeats, timed from" in made
    assert "old" not in made
    assert made.endswith("\n<!-- end -->\nbetween\n<!-- end -->\n")
    assert tables.rewrite(made, root) == made
    assert markdown_table(RUN) in tables.rewrite(PAGE.replace("brief", "full"), root)


def test_runs_of_fine_tuning_are_those_of_the_suite(root: Path) -> None:
    settings = finetune.read_suite(finetune.SUITE)["sst2"].model_dump(mode="json")
    hardware = {"cpu": "a CPU", "cores": 2}
    run = {"data_set": "sst2", "system": "bertfast", "seed": 1, "settings": settings, "hardware": hardware}
    run |= {"metrics": {"accuracy": 0.5}, "train_s": 1.0, "process_s": 2.0}
    other = run | {"settings": settings | {"epochs": 9.0}, "metrics": {"accuracy": 0.9}}
    (root / "results" / "runs.json").write_text(json.dumps({"runs": [run, other]}))
    made = tables.rewrite(PAGE.replace("brief", "finetune").replace("a.json", "runs.json"), root)
    assert "| sst2 | accuracy | 50.00 | - | - | 1.0 / - / - |" in made
    assert "a CPU, 2 cores; seeds 1, one process" in made
    assert "All samples: `runs.json`." in made


def test_what_each_precision_loses_has_a_column_for_each_runtime(root: Path) -> None:
    fp8 = {"precision": "fp8", "backend": "onnxruntime", "emulated": True, "drop": 0.456, "flips": 14}
    bf16 = {"precision": "bf16", "backend": "openvino", "emulated": False, "drop": -0.1, "flips": 2}
    runs = [
        {
            "data_set": name,
            "settings": finetune.read_suite(finetune.SUITE)[name].model_dump(mode="json"),
            "hardware": {"cpu": "a CPU", "cores": 2},
            "rows": 1234,
            "metric_of_checkpoint": 84.5,
            "precisions": found,
        }
        for name, found in (("sst2", [fp8]), ("wnut17", [bf16, fp8]))
    ]
    (root / "results" / "runs.json").write_text(json.dumps({"runs": runs}))
    made = tables.rewrite(PAGE.replace("brief", "precisions").replace("a.json", "runs.json"), root)
    assert "| data set | metric | rows | fp32 % | fp8, onnxruntime (emulated) | bf16, openvino |" in made
    assert "| sst2 | accuracy | 1,234 | 84.50 | 0.46, 14 | - |" in made
    assert "| wnut17 | f1 | 1,234 | 84.50 | 0.46, 14 | -0.10, 2 |" in made


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (PAGE.replace("brief", "finetune").replace("a.json", "runs.json"), "runs.json has no runs with the settings"),
        (
            PAGE.replace("brief", "breif"),
            "table:breif is none of brief, full, finetune, precisions. Did you mean 'brief'",
        ),
        (PAGE.replace("a.json", "b.json"), "b.json does not exist"),
        ("<!-- table:brief from results/a.json -->\n", "a table is not of the form"),
        ("<!-- table:brief -->\n<!-- end -->\n", "a table is not of the form"),
    ],
)
def test_what_cannot_be_made_is_refused(page: str, why: str, root: Path) -> None:
    with pytest.raises(DataError, match=why):
        tables.rewrite(page, root)


def test_a_file_is_checked_or_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = root / "README.md"
    page.write_text(PAGE)
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check", str(page)])
    with pytest.raises(SystemExit, match="out of date"):
        tables.main()
    assert page.read_text() == PAGE
    monkeypatch.setattr(sys, "argv", ["tables.py", str(page)])
    tables.main()
    assert page.read_text() == tables.rewrite(PAGE, root)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check", str(page)])
    tables.main()
