"""benchmarks/inference.py: suites that can be run, the model that each needs, and what is measured with it."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import bertfast
from benchmarks import inference
from benchmarks.inference import Suite
from bertfast.bench.run import BenchPlan
from bertfast.config import FinetuneConfig
from bertfast.errors import ConfigError
from bertfast.model.weights import open_checkpoint
from tests.conftest import alike

NAMES = sorted(path.stem.removeprefix("inference-") for path in (inference.HERE / "suites").glob("inference-*.toml"))
DEV = {"file": "dev.tsv", "columns": ["sentence", "label"]}
RANDOM = {"shape": {"num_hidden_layers": 1}, "labels": ["0", "1"]}
LEARNT = {"train": {"file": "train.tsv", "columns": ["sentence", "label"]}, "finetune": {"epochs": 1}}


def suite_of(**settings: Any) -> Suite:
    return Suite.parse({"peers": ["optimum:int8"], "dev": DEV, **settings}, "suite")


def test_the_suites_are_what_make_runs() -> None:
    makefile = (inference.HERE.parent / "Makefile").read_text(encoding="utf-8")
    run = [line.split()[1:] for line in makefile.splitlines() if line.startswith("\t$(INFERENCE)")]
    assert sorted(word for words in run for word in words if word != "--record") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_names_peers_that_there_are(name: str) -> None:
    suite = inference.read_suite(name)
    assert suite.peers
    assert all((inference.HERE / "peers" / peer.partition(":")[0] / "peer.py").is_file() for peer in suite.peers)
    assert suite.train != suite.dev
    assert (len(suite.dev.columns) == 1) == (suite.train is None)


@pytest.mark.parametrize(
    "settings", [{}, {**RANDOM, **LEARNT}, {"shape": RANDOM["shape"]}, {"train": LEARNT["train"]}], ids=str
)
def test_a_suite_has_one_model(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give train and"):
        suite_of(**settings)


@pytest.fixture
def small_world(tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> list[BenchPlan]:
    """A tiny checkpoint for MiniLM, data of two rows again and again, and the plans that the benchmark was given."""
    plans: list[BenchPlan] = []

    def bench(plan: BenchPlan, out: Path, **_: Any) -> None:
        plans.append(plan)
        out.mkdir(parents=True)
        (out / "report.json").write_text("{}")
        (out / "report.md").write_text("the table")

    monkeypatch.setattr(inference, "minilm", lambda: pretrained)
    monkeypatch.setattr(inference, "bench", bench)
    monkeypatch.setattr(inference, "provenance", lambda: {"command": "python a.py", "commit": "abc"})
    for name in ("train", "dev"):
        rows = f"The old {name}\t1\nThe river\t0\n" * 200
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    return plans


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(data=folder, out=folder / "out", threads=1, record=True)


def test_random_weights_are_measured_without_labels(
    small_world: list[BenchPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(**RANDOM, dev={"file": "dev.tsv", "columns": ["sentence"]}, repeats=2)
    monkeypatch.setattr(inference, "read_suite", lambda name: suite)
    report = inference.measure("tiny", options(tmp_path))
    (plan,) = small_world
    rows = [json.loads(line) for line in plan.data.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"text": "The old dev"}, {"text": "The river"}] * 200
    assert (plan.repeats, plan.threads, plan.command, plan.commit) == (2, 1, "python a.py", "abc")
    assert plan.peers == [str(inference.HERE / "peers" / "optimum:int8")]
    assert open_checkpoint(plan.artefacts[0]).config.num_hidden_layers == 1
    answers = []
    for artefact in plan.artefacts:
        with bertfast.load(artefact) as model:
            answers.append([answer["scores"]["1"] for answer in model.predict(["The old dev"])])
    assert [artefact.name for artefact in plan.artefacts][:2] == ["model", "fp32"]
    assert {"int8"} <= {artefact.name for artefact in plan.artefacts[2:]} <= {"bf16", "int8"}
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert all(answer == pytest.approx(answers[0], abs=0.05) for answer in answers[2:])
    assert report == tmp_path / "out" / "tiny" / "report"


def test_random_weights_are_the_same_every_time(small_world: list[BenchPlan], tmp_path: Path) -> None:
    one, other = (inference.random_model(suite_of(**RANDOM), tmp_path / name) for name in ("one", "other"))
    assert alike(one, other)


def test_a_model_learns_as_its_suite_says(
    small_world: list[BenchPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path, Path, FinetuneConfig]] = []

    def finetune(start: Any, task: Any, train: Path, dev: Path, out: Path, config: FinetuneConfig, **rest: Any) -> None:
        assert rest == {"resume": True}
        asked.append((train, dev, out, config))

    monkeypatch.setattr(inference, "finetune", finetune)
    dev = tmp_path / "dev.jsonl"
    model = inference.make_model(suite_of(**LEARNT), tmp_path, dev, tmp_path / "out" / "model")
    ((train, evaluated, out, config),) = asked
    assert "The old train" in train.read_text(encoding="utf-8")
    assert (evaluated, out, config.epochs, config.seed) == (dev, model, 1, inference.SEED)


def test_results_are_kept_under_their_hardware_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = inference.record_path("sst2", {"cpu": "AMD EPYC 7B13 (R)", "cores": 2}, datetime(2026, 11, 23))
    assert kept == inference.HERE / "results" / "inference-sst2_amd-epyc-7b13-r-2core_202611.json"
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "report.md").write_text("the table")
    monkeypatch.setattr(inference, "measure", lambda name, options: tmp_path)
    monkeypatch.setattr(inference, "record_path", lambda name, hardware, now: tmp_path / f"{name}.json")
    words = ["inference.py", "a", "b", "--data", "d", "--out", "o"]
    for more in ([], ["--record"]):
        monkeypatch.setattr("sys.argv", words + more)
        inference.main()
        assert [(tmp_path / f"{name}.json").exists() for name in "ab"] == [bool(more)] * 2
    assert capsys.readouterr().out.count("the table") == 4
