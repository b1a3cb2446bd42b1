from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score

import bertfast
from bertfast import artifact
from bertfast.bench import run as running
from bertfast.bench.report import Report, markdown, paired_ratio
from bertfast.bench.run import BenchPlan, bench, compare_answers
from bertfast.bench.scenarios import Scenario
from bertfast.bench.worker import Candidate, Worker
from bertfast.config import ModelConfig
from bertfast.errors import ConfigError, DataError
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.tasks.classify import CLASSIFY
from bertfast.tasks.embed import EMBED
from bertfast.tasks.regress import REGRESS
from bertfast.text.labelled import read_examples
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, write_checkpoint, write_rows


def plan_for(artefacts: tuple[Path, ...], data: Path, **changes: object) -> BenchPlan:
    return BenchPlan(artefacts, data, "bertfast bench ...", repeats=2, threads=1, single_stream_rows=8, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(pretrained: Path, row_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that answers differently for different rows: a constant answer would hide shuffled labels."""
    out = tmp_path_factory.mktemp("trained") / "trained"
    config = TINY_FINETUNE.model_copy(update={"epochs": 8, "learning_rate": 3e-3})
    finetune(open_checkpoint(pretrained), get_task("classify"), *row_files, out, config)
    return out


@pytest.fixture(scope="module")
def report(
    trained: Path, row_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("bench")
    export(trained, folder / "onnx")
    return bench(plan_for((trained, folder / "onnx"), row_files[1]), folder / "report"), folder / "report"


def test_accuracy_is_that_of_the_predictions_on_their_own_rows(
    report: tuple[Report, Path], trained: Path, row_files: tuple[Path, Path]
) -> None:
    rows = read_examples(row_files[1])
    with bertfast.load(trained) as model:
        predicted = [answer["label"] for answer in model.predict([row.request for row in rows])]
    assert len(set(predicted)) == 3
    expected = accuracy_score([row.gold for row in rows], predicted)
    assert {item.metrics["accuracy"] for item in report[0].candidates} == {expected}


def test_every_backend_is_measured_against_torch(report: tuple[Report, Path]) -> None:
    assert {item.name for item in report[0].candidates} == {"torch", "onnxruntime", "openvino"}
    assert report[0].reference == "torch"
    for item in report[0].candidates:
        assert item.error is None
        assert item.precision == "fp32"
        assert item.flips == (None if item.name == "torch" else 0)
        assert len(item.offline_s) == 2
        assert [len(samples) for samples in item.latency_ms] == [8, 8]
        assert (item.peak_memory_bytes or 0) > 10_000_000
        assert item.sequences["offline"] == 40
        assert item.real_tokens["offline"] <= item.padded_tokens["offline"]


def test_the_report_is_an_artefact_that_tells_the_same_in_every_form(report: tuple[Report, Path]) -> None:
    result, out = report
    assert artifact.open_manifest(out, "report").task == "classify"
    assert Report.model_validate_json((out / "report.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert page.count("<svg") == 2
    for text in (page, markdown(result), (out / "report.md").read_text()):
        assert all(item.name in text for item in result.candidates)


def test_without_labels_there_is_speed_only(classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "The river."}\n{"text": "The old bridge."}\n')
    result = bench(plan_for((classifier,), data), tmp_path / "report")
    assert result.metric is None
    assert result.candidates[0].metrics == {}
    assert "| torch | fp32 | - | reference |" in markdown(result)


def dying(backend: str, moment: str) -> type[Worker]:
    """Workers of which that of one backend is killed when it is asked for something."""

    class Dying(Worker):
        def __init__(self, candidate: Candidate) -> None:
            self.backend = candidate.backend
            super().__init__(candidate)

        def ask(self, request: str, *arguments: object) -> object:
            if (self.backend, request) == (backend, moment):
                os.kill(self._process.pid or 0, 9)
            return super().ask(request, *arguments)

    return Dying


def test_a_candidate_that_dies_is_a_row_and_the_others_go_on(
    classifier: Path, exported: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("openvino", "measure"))
    result = bench(plan_for((classifier, exported), row_files[1]), tmp_path / "report")
    rows = {item.name: item for item in result.candidates}
    assert "the process died (exit code -9) during 'measure'" in (rows["openvino"].error or "")
    assert rows["torch"].error is rows["onnxruntime"].error is None
    assert "failed: the process died" in markdown(result)


def test_a_reference_that_dies_leaves_the_others_a_reference(
    exported: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("onnxruntime", "load"))
    result = bench(plan_for((exported,), row_files[1]), tmp_path / "report")
    assert result.reference == "openvino"
    assert {item.name: item.error is None for item in result.candidates} == {"onnxruntime": False, "openvino": True}


def test_golds_that_nothing_can_be_judged_by_are_refused_before_anything_is_measured(
    reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("torch", "measure"))
    data = write_rows(tmp_path / "dev.jsonl", [{"text": "The river.", "pair": "waits", "label": 1}] * 2)
    done: list[str] = []
    with pytest.raises(DataError, match="Give it pairs of both kinds"):
        bench(plan_for((reranker,), data), tmp_path / "report", notify=lambda what, *_: done.append(what))
    assert not done


def test_windows_are_sequences_and_questions_are_rows(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    finder = write_checkpoint(tmp_path / "finder", "qa", tiny_config, tokenizer, ())
    rows = [
        {"question": "What waits?", "context": "The river waits. " * 60},
        {"question": "river " * 70, "context": "The river waits. " * 60},
        {"question": "What waits?", "context": "The river."},
    ]
    plan = plan_for((finder,), write_rows(tmp_path / "dev.jsonl", rows), settings={"doc_stride": 8})
    result = bench(plan, tmp_path / "report")
    (item,) = result.candidates
    assert result.rows == 3
    assert item.sequences["offline"] == item.sequences["single-stream"] > 40  # 20 by the default stride
    assert [len(samples) for samples in item.latency_ms] == [3, 3]
    assert item.truncated == 1


def test_two_artefacts_of_one_name_are_told_apart(exported: Path, row_files: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "onnx")
    plan = plan_for(
        (exported, tmp_path / "onnx"), row_files[1], backends=("onnxruntime",), scenarios=(Scenario.OFFLINE,)
    )
    result = bench(plan, tmp_path / "report")
    assert [item.name for item in result.candidates] == ["onnx onnxruntime", "onnx onnxruntime (2)"]


def test_a_torn_artefact_is_refused_before_anything_runs(
    exported: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(exported, torn)
    (torn / "model.onnx").write_bytes(b"short")
    with pytest.raises(bertfast.ArtifactError, match="cut short"):
        bench(plan_for((torn,), row_files[1]), tmp_path / "report")


def test_what_does_not_fit_is_refused(
    classifier: Path, pretrained: Path, exported: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="different tasks"):
        bench(plan_for((classifier, pretrained), row_files[1]), tmp_path / "report")
    with pytest.raises(ConfigError, match="no artefact here runs in torch"):
        bench(plan_for((exported,), row_files[1], backends=("torch",)), tmp_path / "report")
    strange = tmp_path / "rows.jsonl"
    strange.write_text(json.dumps({"text": "a", "label": "sea"}) + "\n")
    with pytest.raises(DataError, match="has the label 'sea'"):
        bench(plan_for((classifier,), strange), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_flips_and_drift_are_counted_row_by_row() -> None:
    def answer(label: str, a: float) -> dict[str, object]:
        return {"label": label, "score": max(a, 1 - a), "scores": {"a": a, "b": 1 - a}}

    reference = [answer("a", 0.9), answer("b", 0.2), answer("a", 0.6)]
    other = [answer("a", 0.7), answer("b", 0.25), answer("b", 0.45)]
    flips, drift = compare_answers(CLASSIFY, other, reference)
    assert flips == 1
    assert drift == pytest.approx(0.2)
    with pytest.raises(DataError, match="2 answers cannot be compared with 3"):
        compare_answers(CLASSIFY, other[:2], reference)


def test_numbers_drift_where_nothing_is_decided() -> None:
    flips, drift = compare_answers(REGRESS, [{"score": 1.0}, {"score": 4.5}], [{"score": 1.2}, {"score": 4.0}])
    assert (flips, drift) == (None, pytest.approx(0.5))
    pair = {"embedding": [1.0, 0.0], "pair_embedding": [0.0, 2.0], "score": 0.0}
    assert compare_answers(EMBED, [pair], [pair | {"embedding": [3.0, 0.0]}]) == (None, pytest.approx(0.0))
    assert compare_answers(EMBED, [pair], [pair | {"pair_embedding": [1.5, 2.0]}])[1] == pytest.approx(0.2)


def test_ratios_are_taken_within_a_repeat() -> None:
    assert paired_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 4.0]) == 2.0
