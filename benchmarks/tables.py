"""The benchmark tables of README.md, made from recorded results and never typed.

    python benchmarks/tables.py [--check] [FILE.md...]

rewrites what stands between

    <!-- table:NAME from benchmarks/results/FILE.json -->
    <!-- end -->

where NAME says which table of the results it is: `brief` or `full` of a benchmark report, `finetune` and
`precisions` of the runs of the scripts of these names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import finetune
import precisions
from provenance import Row

from bertfast.bench.compare import read_results
from bertfast.bench.figures import run_line
from bertfast.bench.report import markdown_table
from bertfast.errors import DataError, did_you_mean

ROOT = Path(__file__).parent.parent
SUITE = finetune.read_suite(finetune.SUITE)
OPENING = "<!-- table:"
TABLE = re.compile(
    r"(?P<opening><!-- table:(?P<name>\S+) from (?P<source>\S+) -->\n).*?(?P<closing><!-- end -->)", re.DOTALL
)


def rewrite(text: str, root: Path) -> str:
    """The text with its tables made anew.

    Args:
        root: where the results' paths begin.
    Raises:
        DataError: a table that does not end, has an unknown name, or whose results are not there.
    """
    found = TABLE.findall(text)
    if len(found) != text.count(OPENING):
        raise DataError("a table is not of the form '<!-- table:NAME from FILE.json -->', lines, '<!-- end -->'.")
    return TABLE.sub(
        lambda match: match["opening"] + _body(match["name"], root / match["source"]) + match["closing"], text
    )


def _body(name: str, source: Path) -> str:
    if name not in TABLES:
        raise DataError(f"table:{name} is none of {', '.join(TABLES)}.{did_you_mean(name, TABLES)}")
    return f"\n{TABLES[name](source)} All samples: `{source.name}`.\n\n"


def _of_report(source: Path, *, brief: bool) -> str:
    results = read_results(source)
    return f"{markdown_table(results, brief=brief)}\n\n{results.data}, {run_line(results)}"


def _of_finetuning(source: Path) -> str:
    how = "one process after the other; means and sample standard deviations of metrics, medians of seconds."
    runs = _of_suite(source)
    seeds = ", ".join(sorted({str(run["seed"]) for run in runs}))
    return f"{finetune.table(SUITE, runs)}\n\n{_machines(runs)}; seeds {seeds}, {how}"


def _of_precisions(source: Path) -> str:
    how = "points of the metric lost, and answers that changed."
    runs = _of_suite(source)
    return f"{precisions.table(SUITE, runs)}\n\n{_machines(runs)}; {how}"


def _of_suite(source: Path) -> list[Row]:
    """The runs that were made with the settings of suites/finetune.toml."""
    runs = finetune.recorded(SUITE, source)
    if not runs:
        raise DataError(f"{source} has no runs with the settings of {finetune.SUITE.name}. Measure again.")
    return runs


def _machines(runs: Sequence[Row]) -> str:
    return "; ".join(sorted({f"{run['hardware']['cpu']}, {run['hardware']['cores']} cores" for run in runs}))


TABLES: dict[str, Callable[[Path], str]] = {
    "brief": partial(_of_report, brief=True),
    "full": partial(_of_report, brief=False),
    "finetune": _of_finetuning,
    "precisions": _of_precisions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "README.md"])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table is out of date")
    options = parser.parse_args()
    stale = []
    for path in options.files:
        text = path.read_text(encoding="utf-8")
        made = rewrite(text, ROOT)
        if made != text:
            stale.append(path)
        if not options.check:
            path.write_text(made, encoding="utf-8")
    if options.check and stale:
        sys.exit(f"out of date: {', '.join(map(str, stale))}. Run python benchmarks/tables.py.")


if __name__ == "__main__":
    main()
