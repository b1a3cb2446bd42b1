"""`bertfast bench`: every artefact in every backend that runs it, interleaved, on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertfast import artifact
from bertfast.backends import ServedModel, backends_for, open_served
from bertfast.bench.html import require_reporting, write_html
from bertfast.bench.report import Measured, Report
from bertfast.bench.scenarios import Scenario, spread
from bertfast.bench.worker import Candidate, Worker
from bertfast.errors import BackendError, ConfigError, DataError
from bertfast.tasks import Answer, Task
from bertfast.tasks.ranking import unit
from bertfast.text.labelled import Columns, Example, Request
from bertfast.text.tables import split_reference

Notify = Callable[[str, int, int], object]
Score = Callable[[Sequence[Answer]], dict[str, float]]


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        data: requests in a form that the artefacts' task reads; without golds there is speed only.
        limit: how many of them, spread over the file; all where it is None.
        backends: names to measure; all that are installed where it is empty.
        single_stream_rows: how many requests the single-stream scenario sends one at a time in a repeat.
        settings: the task's settings that are to be others than the artefacts'.
    """

    artefacts: Sequence[Path]
    data: Path
    command: str
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    backends: Sequence[str] = ()
    scenarios: Sequence[Scenario] = tuple(Scenario)
    repeats: int = 5
    threads: int | None = None
    single_stream_rows: int = 100
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Running:
    """A candidate while it is measured."""

    model: ServedModel
    backend: str
    name: str
    worker: Worker
    facts: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    offline_s: list[float] = field(default_factory=list)
    latency_ms: list[tuple[float, ...]] = field(default_factory=list)
    error: str | None = None


def bench(plan: BenchPlan, out: Path, *, overwrite: bool = False, notify: Notify = lambda *_: None) -> Report:
    """Measure and publish a report artefact at `out`.

    Args:
        notify: called with (what is being done, steps done, steps in all).
    Raises:
        ConfigError: nothing to measure, or artefacts of different tasks.
        DataError: a label in the file that the model does not know, or golds that nothing can be judged by.
    """
    artifact.refuse_existing(out, "report", overwrite)
    require_reporting()
    models = [open_served(path, plan.settings) for path in plan.artefacts]
    task = _same_task(models)
    examples = task.read(plan.data, plan.columns, models[0].context.settings, False)
    examples = [examples[i] for i in spread(len(examples), plan.limit)] if plan.limit else examples
    for model in models:
        task.refuse(examples, model.context.labels)
    running = _start(plan, models, examples)
    try:
        _measure(plan, running, _score_of(task, examples), notify)
    finally:
        for item in running:
            item.worker.stop()
    whole = [item for item in running if item.error is None]
    reference = next((item for item in whole if item.backend == "torch"), next(iter(whole), running[0]))
    report = _report(plan, task, examples, running, reference)
    with artifact.create(
        out, "report", task=task.name, parents={item.name: item.model.sha256 for item in running}, overwrite=overwrite
    ) as draft:
        report.write(draft.path)
        write_html(report, draft.path / "report.html")
        draft.settings = {"command": plan.command}
    return report


def _same_task(models: Sequence[ServedModel]) -> Task:
    names = {model.task.name for model in models}
    if len(names) != 1:
        raise ConfigError(
            f"the artefacts serve different tasks ({', '.join(sorted(names))}). Measure one task at a time."
        )
    return models[0].task


def _start(plan: BenchPlan, models: Sequence[ServedModel], examples: Sequence[Example]) -> list[_Running]:
    running: list[_Running] = []
    requests = [example.request for example in examples]
    for number, model in enumerate(models, 1):
        for backend in backends_for(model):
            if plan.backends and backend not in plan.backends:
                continue
            alone = len([other for other in models if other.kind == model.kind]) == 1
            name = backend if alone else f"{model.path.name} {backend}"
            name += f" ({number})" if name in {item.name for item in running} else ""
            candidate = Candidate(model.path, backend, requests, plan.threads, plan.single_stream_rows, plan.settings)
            running.append(_Running(model, backend, name, Worker(candidate)))
    if not running:
        wanted = ", ".join(plan.backends) or "any backend"
        raise ConfigError(f"no artefact here runs in {wanted}. 'bertfast doctor' says what is installed.")
    return running


def _score_of(task: Task, examples: Sequence[Example]) -> Score:
    """The metrics of answers to these examples; none where one of them has no gold."""
    golds = [example.gold for example in examples]
    if any(gold is None for gold in golds):
        return lambda answers: {}
    return lambda answers: task.score(answers, golds)


def _measure(plan: BenchPlan, running: Sequence[_Running], score: Score, notify: Notify) -> None:
    """Load, predict and score once each (which warms up, and shows what golds or packages lack before the long part),
    then repeat the scenarios in turn, beginning elsewhere each time."""
    steps = len(running) * (1 + plan.repeats * len(plan.scenarios))
    done = 0
    for item in running:
        notify(f"{item.name}: load and predict", done, steps)
        loaded = _ask(item, "load")
        item.facts = {} if loaded is None else vars(loaded)
        item.answers = _ask(item, "predict") or []
        item.metrics = score(item.answers) if item.answers else {}
        done += 1
    for repeat in range(plan.repeats):
        for scenario in plan.scenarios:
            for place in range(len(running)):
                item = running[(place + repeat) % len(running)]
                notify(f"{item.name}: {scenario.value}, repeat {repeat + 1} of {plan.repeats}", done, steps)
                samples = _ask(item, "measure", scenario.value)
                if samples is not None and scenario is Scenario.OFFLINE:
                    item.offline_s.extend(samples)
                elif samples is not None:
                    item.latency_ms.append(tuple(1e3 * sample for sample in samples))
                done += 1
    for item in running:
        item.facts["peak_memory_bytes"] = _ask(item, "peak_memory")
    notify("done", steps, steps)


def _ask(item: _Running, request: str, *arguments: Any) -> Any:
    """The worker's answer, or None once this candidate has failed."""
    if item.error is not None:
        return None
    try:
        return item.worker.ask(request, *arguments)
    except BackendError as error:
        item.error = str(error)
        return None


def _report(
    plan: BenchPlan, task: Task, examples: Sequence[Example], running: Sequence[_Running], reference: _Running
) -> Report:
    requests = [example.request for example in examples]
    lengths = _lengths(task, requests, reference.model)
    candidates = tuple(_measured(item, reference, task) for item in running)
    return Report(
        command=plan.command,
        data=plan.data.name,
        data_sha256=artifact.sha256_of(split_reference(plan.data)[0]),
        rows=len(examples),
        task=task.name,
        metric=_quoted(task, candidates),
        reference=reference.name,
        repeats=plan.repeats,
        threads=plan.threads,
        length_percentiles={f"p{p}": int(np.percentile(lengths, p)) for p in (0, 50, 90, 99, 100)},
        libraries=artifact.libraries(),
        hardware=artifact.hardware(),
        candidates=candidates,
    )


def _quoted(task: Task, candidates: Sequence[Measured]) -> str | None:
    """The task's metric, or the first one where data of this kind has none of that name; None without golds."""
    found = next((item.metrics for item in candidates if item.metrics), {})
    return task.metric if task.metric in found else next(iter(found), None)


def _lengths(task: Task, requests: Sequence[Request], model: ServedModel) -> list[int]:
    return [len(sequence) for windows in task.encode(requests, model.context) for sequence in windows]


def _measured(item: _Running, reference: _Running, task: Task) -> Measured:
    size = sum(path.stat().st_size for path in item.model.path.rglob("*") if path.is_file())
    named = {
        "name": item.name,
        "artefact": item.model.path.name,
        "artefact_sha256": item.model.sha256,
        "artefact_bytes": size,
        "backend": item.backend,
    }
    if item.error is not None:
        return Measured(**named, error=item.error)
    flips, drift = (None, None) if item is reference else compare_answers(task, item.answers, reference.answers)
    return Measured(
        **named,
        **item.facts,
        metrics=item.metrics,
        flips=flips,
        largest_score_drift=drift,
        offline_s=tuple(item.offline_s),
        latency_ms=tuple(item.latency_ms),
    )


def compare_answers(
    task: Task, answers: Sequence[Answer], reference: Sequence[Answer]
) -> tuple[int | None, float | None]:
    """(answers that decide otherwise, the largest drift of an answer's numbers).

    The first is None where the task decides nothing, the second where its answers hold no numbers.

    Raises:
        DataError: the two do not answer the same requests.
    """
    if len(answers) != len(reference):
        raise DataError(f"{len(answers)} answers cannot be compared with {len(reference)}.")
    pairs = list(zip(answers, reference, strict=True))
    flips = sum(task.decision(a) != task.decision(b) for a, b in pairs) if task.decision else None
    return flips, max((drift for a, b in pairs for drift in _drifts(a, b)), default=None)


def _drifts(answer: Answer, reference: Answer) -> list[float]:
    """The changes of the score of each label or, without labels, of the score; of vectors 1 - their cosine."""
    if "scores" in reference:
        return [abs(answer["scores"][label] - value) for label, value in reference["scores"].items()]
    scores = [abs(answer["score"] - reference["score"])] if "score" in reference else []
    names = [name for name in ("embedding", "pair_embedding") if name in reference]
    return scores + [1 - _cosine(answer[name], reference[name]) for name in names]


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    return float(unit(np.array(first, np.float64)) @ unit(np.array(second, np.float64)))
