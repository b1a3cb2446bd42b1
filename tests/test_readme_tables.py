"""benchmarks/tables.py: the README's tables are those of the recorded results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import tables
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


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (PAGE.replace("brief", "breif"), "table:breif is none of brief, full. Did you mean 'brief'"),
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
