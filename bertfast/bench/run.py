"""`bertfast bench`: every artefact in every backend that runs it, and peers, in turn on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertfast import artifact
from bertfast.backends import ServedModel, open_served
from bertfast.bench.accuracy import Judge, compare_answers, not_finite
from bertfast.bench.candidates import Candidate, our_candidates, peer_candidates
from bertfast.bench.figures import not_finite_in_words
from bertfast.bench.gate import verdict_on
from bertfast.bench.html import require_reporting
from bertfast.bench.measuring import Running, Say, measure
from bertfast.bench.plan import BenchPlan
from bertfast.bench.report import write_reports
from bertfast.bench.results import GridCell, Measured, Results
from bertfast.bench.scenarios import Scenario
from bertfast.bench.worker import Worker
from bertfast.errors import ConfigError, DataError
from bertfast.tasks import Task
from bertfast.text.labelled import Example, evenly_spread
from bertfast.text.tables import split_reference

__all__ = ["BenchPlan", "bench"]

Notify = Callable[[str, int, int], object]
_FACTS = ("precision", "emulated", "libraries", "load_s", "build_s")


def bench(plan: BenchPlan, out: Path, *, overwrite: bool = False, notify: Notify = lambda *_: None) -> Results:
    """Measure and publish a report artefact at `out`.

    Args:
        notify: called with (what is being done, steps done, steps in all).
    Raises:
        ConfigError: nothing to measure, artefacts of different tasks, a peer that is none, or a plan that cannot be
            carried out.
        DataError: a label in the file that the model does not know, or golds that nothing can be judged by.
    """
    artifact.refuse_existing(out, "report", overwrite)
    require_reporting()
    plan = _with_threads(plan)
    models = [open_served(path, plan.settings) for path in plan.artefacts]
    task = _same_task(models)
    _refuse_what_cannot_be_measured(plan, models)
    _warn_of_other_checkpoints(models)
    examples = task.read(plan.data, plan.columns, models[0].context.settings, False)
    examples = [examples[i] for i in evenly_spread(len(examples), plan.limit)] if plan.limit else examples
    for model in models:
        task.refuse(examples, model.context.labels)
    labelled = all(example.gold is not None for example in examples)
    if plan.limits.max_drop is not None and not labelled:
        raise DataError(
            f"--max-drop is judged by right answers, and {plan.data.name} has none. Give a file with labels."
        )
    judge = Judge(task, [example.gold for example in examples] if labelled else None)
    candidates = our_candidates(models, plan.backends, plan.settings) + peer_candidates(plan.peers, models)
    running = _start(plan, candidates, examples)
    say = _counting(notify, len(running) * (2 + plan.repeats * (len(plan.scenarios) + len(plan.grid))))
    try:
        _prepare_and_measure(plan, running, judge, say)
    finally:
        for item in running:
            item.worker.stop()
    results = _results(plan, judge, examples, running, say)
    notify("done", 1, 1)
    if plan.limits.any:
        results = results.model_copy(update={"verdict": verdict_on(results, plan.limits)})
    parents = {item.candidate.name: item.candidate.model.sha256 for item in running}
    with artifact.create(out, "report", task=task.name, parents=parents, overwrite=overwrite) as draft:
        write_reports(results, draft.path)
        draft.settings = {"command": plan.command}
    return results


def _with_threads(plan: BenchPlan) -> BenchPlan:
    """The plan with one number of threads for all: left to themselves, one backend heeds OMP_NUM_THREADS and the other
    does not."""
    cores = int(artifact.hardware()["cores"])
    if plan.threads and plan.threads > cores:
        warnings.warn(f"{plan.threads} threads share {cores} cores, and wait for each other.", stacklevel=3)
    return replace(plan, threads=plan.threads or cores)


def _warn_of_other_checkpoints(models: Sequence[ServedModel]) -> None:
    """A drop says what an export costs only where both come from the same weights."""
    first = models[0]
    others = [model.name for model in models if model.source_sha256 != first.source_sha256]
    if others:
        warnings.warn(
            f"{', '.join(others)}: not exported from the checkpoint of {first.name}. Drops and flips are then between "
            "two models, and not what a precision costs.",
            stacklevel=3,
        )


def _same_task(models: Sequence[ServedModel]) -> Task:
    names = {model.task.name for model in models}
    if len(names) != 1:
        raise ConfigError(
            f"the artefacts serve different tasks ({', '.join(sorted(names))}). Measure one task at a time."
        )
    return models[0].task


def _refuse_what_cannot_be_measured(plan: BenchPlan, models: Sequence[ServedModel]) -> None:
    limits, scenarios = plan.limits, set(plan.scenarios)
    if Scenario.SERVER in scenarios and limits.max_p99_ms is None:
        raise ConfigError("the scenario server looks for the highest rate within a bound. Give it: --max-p99-ms.")
    if limits.min_speedup is not None and Scenario.OFFLINE not in scenarios:
        raise ConfigError("--min-speedup is judged by the scenario offline. Add it: --scenario offline.")
    if limits.max_p99_ms is not None and not scenarios & {Scenario.SINGLE_STREAM, Scenario.SERVER}:
        raise ConfigError(
            "--max-p99-ms is judged by the scenarios single-stream and server. Add one: --scenario server."
        )
    for model in models:
        for _, length in plan.grid:
            if length > model.context.max_length:
                raise ConfigError(
                    f"the grid has batches of {length} tokens, and {model.path} takes {model.context.max_length}. "
                    "Leave out the longer ones."
                )


def _start(plan: BenchPlan, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[Running]:
    requests = [example.request for example in examples]
    return [
        Running(candidate, Worker(candidate.module, candidate.python, plan.threads), plan, requests)
        for candidate in candidates
    ]


def _prepare_and_measure(plan: BenchPlan, running: Sequence[Running], judge: Judge, say: Say) -> None:
    """Answers are scored before the long part, which shows what golds or packages lack."""
    for item in running:
        say(f"{item.candidate.name}: load and predict")
        item.prepare()
        if item.error is None:
            _score(item, judge, next(other for other in running if other.answers))
    measure(plan, running, say)


def _counting(notify: Notify, steps: int) -> Say:
    """Tells of each step, of which there may be more than was thought where repeats differ."""
    done = 0

    def say(what: str) -> None:
        nonlocal done
        notify(what, done, max(steps, done + 1))
        done += 1

    return say


def _score(item: Running, judge: Judge, first: Running) -> None:
    """The metrics of the answers, which must have the form of the first candidate's."""
    try:
        compare_answers(judge.task, item.answers, first.answers)
        item.metrics = judge.metrics(item.answers)
    except (KeyError, TypeError) as error:
        item.fail(f"its answers are not of the form of {judge.task.name}: {type(error).__name__}: {error}")


def _results(
    plan: BenchPlan, judge: Judge, examples: Sequence[Example], running: Sequence[Running], say: Say
) -> Results:
    reference = _reference(running)
    compared = _compared(running, reference, judge, say)
    requests = [example.request for example in examples]
    model = reference.candidate.model
    lengths = [len(one) for sequences in judge.task.encode(requests, model.context) for one in sequences]
    return Results(
        command=plan.command,
        commit=plan.commit,
        data=plan.data.name,
        data_sha256=artifact.sha256_of(split_reference(plan.data)[0]),
        rows=len(examples),
        labelled=judge.golds is not None,
        task=judge.task.name,
        metric=judge.quoted(reference.metrics),
        reference=reference.candidate.name,
        repeats=plan.repeats,
        threads=plan.threads,
        bound_p99_ms=plan.limits.max_p99_ms if Scenario.SERVER in plan.scenarios else None,
        lengths=tuple(np.bincount(lengths).tolist()),
        libraries=artifact.libraries(),
        hardware=artifact.hardware(),
        candidates=tuple(_measured(item, compared.get(item.candidate.name, {}), len(lengths)) for item in running),
    )


def _reference(running: Sequence[Running]) -> Running:
    """The first in fp32 that answers; else the first that answers."""
    whole = [item for item in running if item.error is None] or running
    sound = [item for item in whole if not not_finite(item.answers)] or whole
    return next((item for item in sound if item.facts.get("precision") == "fp32"), sound[0])


def _compared(running: Sequence[Running], reference: Running, judge: Judge, say: Say) -> dict[str, dict[str, Any]]:
    """By candidate the fields that hold its answers against the reference's; many rows take minutes."""
    others = [item for item in running if item is not reference and item.error is None]
    if not others:
        return {}
    say(f"{reference.candidate.name}: resample its score")
    resampled = judge.resampled(reference.answers, reference.metrics)
    found = {}
    for item in others:
        say(f"{item.candidate.name}: compare with {reference.candidate.name}")
        found[item.candidate.name] = judge.compare(
            item.answers, reference.answers, item.metrics, reference.metrics, resampled
        )
    return found


def _measured(item: Running, compared: Mapping[str, Any], sequences: int) -> Measured:
    """What is published of a candidate; `compared` is what holds its answers against the reference's."""
    candidate = item.candidate
    named = {
        "name": candidate.name,
        "system": candidate.system,
        "artefact": candidate.model.name,
        "artefact_sha256": candidate.model.sha256,
        "artefact_bytes": sum(path.stat().st_size for path in candidate.model.path.rglob("*") if path.is_file()),
        "backend": candidate.backend,
    }
    if item.error is not None:
        return Measured(**named, error=item.error)
    return Measured(
        **named,
        **{name: item.facts[name] for name in _FACTS if name in item.facts},
        **compared,
        **_tokens(item, sequences),
        batch_size=item.batch_size,
        metrics=item.metrics,
        not_finite=not_finite(item.answers),
        truncated=sum("truncated" in answer for answer in item.answers),
        peak_memory_bytes=item.memory.get("host"),
        peak_device_memory_bytes=item.memory.get("device"),
        offline=tuple(item.offline.get(Scenario.OFFLINE, ())),
        offline_given=tuple(item.offline.get(Scenario.OFFLINE_GIVEN, ())),
        latency_ms=tuple(item.latency_ms),
        server=tuple(item.server),
        grid=tuple(
            GridCell(batch_size=shape[0], length=shape[1], compute_s=tuple(elapsed_s))
            for shape, elapsed_s in item.grid.items()
        ),
        warnings=tuple(_warnings(item)),
    )


def _tokens(item: Running, sequences: int) -> dict[str, Any]:
    """The fields that count sequences and tokens.

    Args:
        sequences: in the file, for a candidate that cannot tell.
    """
    lengths = None if item.lengths is None else [length for request in item.lengths for length in request]
    return {
        "sequences": sequences if lengths is None else len(lengths),
        "real_tokens": None if lengths is None else sum(lengths),
        "padded_tokens": {scenario.value: padded for scenario, padded in item.padded_tokens.items() if padded},
    }


def _warnings(item: Running) -> list[str]:
    found = []
    if why := not_finite_in_words(not_finite(item.answers)):
        found.append(f"{why}, so its answers are not scored.")
    found += [
        f"{rows} x {length} tokens were not computed: {why}" for (rows, length), why in item.refused_shapes.items()
    ]
    if noise := item.noise():
        found.append(noise)
    return found
