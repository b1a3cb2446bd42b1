"""The verb `build`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bertfast.cli.options import Overwrite, PairColumn, TextColumn, print_json
from bertfast.console import errors, notifying
from bertfast.errors import ConfigError

if TYPE_CHECKING:
    from bertfast.backends.engine_plan import EngineRecord, ShapePlan
    from bertfast.engine.build import Source
    from bertfast.engine.recipe import Recipe
    from bertfast.text.labelled import Columns

_RECIPES = "latency, throughput, mixed, datacenter-fp16, datacenter-int8, datacenter-fp8, rtx-ahead-of-time"
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help=f"How to build: a TOML file, or one of the recipes {_RECIPES}.")
]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Directory to write. It appears whole or not at all.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="TensorRT for RTX: a compute capability such as SM89, in place of the recipe's."),
]
PlanFrom = Annotated[
    Path | None,
    typer.Option(help="Texts like those that will be served: their lengths make the profiles, not the recipe."),
]
Buckets = Annotated[int, typer.Option(min=1, help="With --plan-from: lengths that texts are padded to.")]
RecipeSettings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the recipe, such as optimization_level=5.")
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Build an engine again, in its place, from the ONNX and recipe inside it.")
]
Inspect = Annotated[
    bool, typer.Option("--inspect", help="What an engine was made of, and, on its GPU, what it executes.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Check an engine's files against its manifest; load nothing.")]


def build(
    artefact: Annotated[Path, typer.Argument(help="An exported ONNX artefact, or an engine.")],
    recipe: RecipeFile = None,
    out: OutFolder = None,
    target: Targets = None,
    settings: RecipeSettings = None,
    plan_from: PlanFrom = None,
    buckets: Buckets = 4,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    rebuild: Rebuild = False,
    inspect: Inspect = False,
    verify: Verify = False,
    overwrite: Overwrite = False,
) -> None:
    """Build a TensorRT engine from an ONNX artefact; or rebuild, inspect or verify one."""
    from bertfast.backends.engine_plan import read_engine
    from bertfast.engine.build import build as build_engine
    from bertfast.engine.build import open_source
    from bertfast.text.labelled import Columns

    if sum([verify, inspect, rebuild]) > 1:
        raise ConfigError("--verify, --inspect and --rebuild are three different things to do. Give one of them.")
    if verify:
        _, record = read_engine(artefact)
        print_json({"verified": True} | _in_short(artefact, record))
        return
    if inspect:
        _inspect(artefact)
        return
    if rebuild and (recipe or settings or plan_from):
        raise ConfigError("--rebuild takes the recipe inside the engine. To build by another one, leave it out.")
    source = open_source(artefact)
    chosen = _again(source, target or ()) if rebuild else _recipe(recipe, settings or (), target or ())
    if not rebuild and out is None:
        raise ConfigError("build writes a directory: give --out DIR.")
    shapes = None
    if plan_from:
        shapes = _plan(artefact, chosen, plan_from, Columns(text=text_column, pair=pair_column), buckets)
        _show(shapes)
        chosen = chosen.model_copy(update={"profiles": shapes.profiles})
    place, overwrite = out or artefact, overwrite or (rebuild and out is None)
    with notifying() as notify:
        record = build_engine(source, place, chosen, shapes=shapes, overwrite=overwrite, notify=notify)
    print_json(_in_short(place, record))


def _recipe(file: Path | None, settings: Sequence[str], targets: Sequence[str]) -> Recipe:
    from bertfast.engine.recipe import read_recipe, recipe_names

    if file is None:
        raise ConfigError(f"build wants --recipe: a TOML file or one of {', '.join(recipe_names())}.")
    return read_recipe(file, settings, targets)


def _again(source: Source, targets: Sequence[str]) -> Recipe:
    """The recipe that an engine was built with."""
    from bertfast.engine.recipe import Recipe

    if source.engine is None:
        raise ConfigError(f"--rebuild takes an engine, and {source.path} is none. Give --recipe and --out.")
    return Recipe.parse(source.engine.recipe | ({"targets": targets} if targets else {}), str(source.path))


def _plan(artefact: Path, recipe: Recipe, texts: Path, columns: Columns, buckets: int) -> ShapePlan:
    """Profiles for the lengths of these texts, for batches as large as those of the recipe."""
    from bertfast.backends import open_served
    from bertfast.engine.planner import plan_shapes, sequence_lengths
    from bertfast.text.hub import local_data

    served = open_served(artefact)
    return plan_shapes(
        sequence_lengths(served, local_data(texts), columns),
        served.context.max_length,
        buckets=buckets,
        batch_tokens=max(profile.batch[2] * profile.length[2] for profile in recipe.profiles),
        max_batch=max(profile.batch[2] for profile in recipe.profiles),
    )


def _show(plan: ShapePlan) -> None:
    """Bucket by bucket, on standard error."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("padded to", "sequences", "padding"):
        table.add_column(heading, justify="right")
    for bucket in plan.buckets:
        padding = 1 - bucket.real_tokens / (bucket.sequences * bucket.length)
        table.add_row(str(bucket.length), f"{bucket.sequences:,}", f"{padding:.1%}")
    errors.print(table, highlight=False)
    one, by_length, buckets = map(
        plan.waste, (plan.padded.one_profile, plan.padded.sorted_batches, plan.padded.buckets)
    )
    errors.print(
        f"padding among the computed tokens: one profile {one:.1%}, sorted batches {by_length:.1%}, these buckets "
        f"{buckets:.1%}. At an equal speed of computing, the buckets bring "
        f"{plan.padded.one_profile / plan.padded.buckets:.2f} times the real tokens/s of one profile.",
        highlight=False,
        soft_wrap=True,
    )


def _inspect(path: Path) -> None:
    from bertfast.engine.inspect import inspect

    found = inspect(path)
    print_json(found.model_dump(mode="json", exclude={"engine": {"recipe"}, "graph": {"quantized"}}))
    for warning in found.compiled.warnings if found.compiled else ():
        warnings.warn(warning, stacklevel=1)
    if found.unseen:
        warnings.warn(f"the layers of the plan are not shown: {found.unseen}", stacklevel=1)


def _in_short(place: Path, record: EngineRecord) -> dict[str, Any]:
    return {
        "engine": str(place),
        "library": f"{record.library} {record.library_version}",
        "profiles": [str(profile) for profile in record.profiles],
        "plans": {
            plan.target: {"file": plan.file, "bytes": (place / plan.file).stat().st_size, "sha256": plan.sha256}
            for plan in record.plans
        },
    }
