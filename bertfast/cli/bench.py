"""The verb `bench`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertfast.cli.options import (
    AsJson,
    LabelColumn,
    Overwrite,
    PairColumn,
    TaskSettings,
    TextColumn,
    choice,
    task_settings,
)
from bertfast.console import notifying
from bertfast.errors import ConfigError

if TYPE_CHECKING:
    from bertfast.bench.plan import BenchPlan

# What was asked was done, and the answer is no.
REFUSED_STATUS = 3


Artefacts = Annotated[
    list[Path] | None, typer.Argument(metavar="ARTEFACT...", help="Checkpoints, exported models, or models of the hub.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="Rows to measure on, or hub:OWNER/NAME/CONFIG:SPLIT; labels give accuracy too. Required."),
]
Out = Annotated[Path | None, typer.Option(help="Directory to write. It appears whole or not at all. Required.")]
Backends = Annotated[list[str] | None, typer.Option(help="Only these backends.")]
Peers = Annotated[
    list[str] | None, typer.Option(metavar="DIR[:VARIANT]", help="A folder of benchmarks/peers, after make peers.")
]
Scenarios = Annotated[
    list[str] | None,
    typer.Option(help="offline, offline-given, single-stream or server; offline and single-stream if not given."),
]
MaxDrop = Annotated[
    float | None, typer.Option(min=0, metavar="POINTS", help="Gate: most points of the metric to lose.")
]
MinSpeedup = Annotated[
    float | None, typer.Option(min=0.001, metavar="X", help="Gate: least throughput, by the reference's.")
]
MaxP99 = Annotated[
    float | None, typer.Option(min=0.001, metavar="MS", help="Gate: highest p99; the bound of the scenario server.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Interleaved repeats.")]
ServerRequests = Annotated[int, typer.Option(min=1, help="Least number of arrivals at each rate tried.")]
BatchSizes = Annotated[str | None, typer.Option(metavar="B,B,...", help="Time batches of so many sequences too,")]
Lengths = Annotated[str | None, typer.Option(metavar="S,S,...", help="each of so many tokens.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each; all cores when not given.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only this many rows, spread over the file.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="OLD NEW", help="Measure nothing: say what changed between two reports."),
]


def bench(
    artefacts: Artefacts = None,
    data: Data = None,
    out: Out = None,
    backend: Backends = None,
    peer: Peers = None,
    scenario: Scenarios = None,
    max_drop: MaxDrop = None,
    min_speedup: MinSpeedup = None,
    max_p99_ms: MaxP99 = None,
    repeats: Repeats = 5,
    server_requests: ServerRequests = 200,
    batch_sizes: BatchSizes = None,
    lengths: Lengths = None,
    limit: Limit = None,
    threads: Threads = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: TaskSettings = None,
    compare: Compare = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure speed and accuracy of every artefact in every backend that runs it, and of peers, and say what to ship.

    The exit status is 3 where the gate says no, or where a comparison finds that something regressed.
    """
    if compare is not None:
        if artefacts or data or out or {max_drop, min_speedup, max_p99_ms} != {None}:
            raise ConfigError(
                "--compare reads two reports, and neither measures nor judges by limits. "
                "Leave out ARTEFACT, --data, --out and the gate's options."
            )
        _compare(*compare, as_json=as_json)
        return
    if not artefacts or data is None or out is None:
        raise ConfigError("give what to measure: bertfast bench ARTEFACT... --data FILE --out DIR.")
    from bertfast.backends import available
    from bertfast.bench.gate import Limits
    from bertfast.bench.plan import BenchPlan
    from bertfast.bench.scenarios import USUAL, Scenario
    from bertfast.model.snapshot import local_model
    from bertfast.text.hub import local_data
    from bertfast.text.labelled import Columns

    names = [item.name for item in available()]
    for name in backend or []:
        choice("--backend", name, names)
    scenarios = [Scenario(choice("--scenario", name, [s.value for s in Scenario])) for name in scenario or []]
    plan = BenchPlan(
        [local_model(path) for path in artefacts],
        local_data(data),
        shlex.join(["bertfast", *sys.argv[1:]]),
        columns=Columns(text=text_column, pair=pair_column, label=label_column),
        limit=limit,
        backends=backend or (),
        peers=peer or (),
        scenarios=scenarios or USUAL,
        repeats=repeats,
        threads=threads,
        settings=task_settings(settings),
        limits=Limits(max_drop=max_drop, min_speedup=min_speedup, max_p99_ms=max_p99_ms),
        server_requests=server_requests,
        grid=_shapes(batch_sizes, lengths),
    )
    _measure(plan, out, as_json=as_json, overwrite=overwrite)


def _measure(plan: BenchPlan, out: Path, *, as_json: bool, overwrite: bool) -> None:
    from bertfast.bench.report import print_table
    from bertfast.bench.run import bench as run_bench

    with notifying() as notify:
        results = run_bench(plan, out, overwrite=overwrite, notify=notify)
    if as_json:
        print(results.model_dump_json())
    else:
        print_table(results)
        print(f"{out / 'report.html'}")
    if results.verdict is not None and not results.verdict.ship:
        raise typer.Exit(REFUSED_STATUS)


def _compare(old: Path, new: Path, *, as_json: bool) -> None:
    from bertfast.bench.compare import compare, read_results
    from bertfast.bench.report import print_comparison

    comparison = compare(read_results(old), read_results(new))
    if as_json:
        print(comparison.model_dump_json())
    else:
        print_comparison(comparison)
    if comparison.regressed:
        raise typer.Exit(REFUSED_STATUS)


def _shapes(batch_sizes: str | None, lengths: str | None) -> Sequence[tuple[int, int]]:
    """Every batch size with every length."""
    if (batch_sizes is None) != (lengths is None):
        raise ConfigError("a batch of fixed shape has sequences and tokens. Give both --batch-sizes and --lengths.")
    if batch_sizes is None or lengths is None:
        return ()
    return list(product(_numbers("--batch-sizes", batch_sizes), _numbers("--lengths", lengths)))


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{option} {text} is not a list of positive whole numbers, such as 1,8,32.")
    return [int(part) for part in parts]
