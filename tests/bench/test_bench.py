from __future__ import annotations

import json
import shutil
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score

import bertfast
from bertfast import artifact
from bertfast.bench import accuracy
from bertfast.bench import run as running
from bertfast.bench.gate import Limits
from bertfast.bench.results import Results
from bertfast.bench.run import BenchPlan, bench
from bertfast.bench.scenarios import Scenario
from bertfast.bench.uncertainty import resampled
from bertfast.bench.worker import Worker
from bertfast.config import ModelConfig, Precision
from bertfast.errors import ConfigError, DataError
from bertfast.export import quantized as quantizing
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.model.weights import open_checkpoint
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.walk import quantize
from bertfast.tasks import get_task
from bertfast.text.labelled import read_examples
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, labelled_rows, write_checkpoint, write_rows


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
) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("bench")
    export(trained, folder / "onnx")
    return bench(plan_for((trained, folder / "onnx"), row_files[1]), folder / "report"), folder / "report"


def test_accuracy_is_that_of_the_predictions_on_their_own_rows(
    report: tuple[Results, Path], trained: Path, row_files: tuple[Path, Path]
) -> None:
    rows = read_examples(row_files[1])
    with bertfast.load(trained) as model:
        predicted = [answer["label"] for answer in model.predict([row.request for row in rows])]
    assert len(set(predicted)) == 3
    expected = accuracy_score([row.gold for row in rows], predicted)
    assert {item.metrics["accuracy"] for item in report[0].candidates} == {expected}


def test_every_backend_is_measured_against_torch(report: tuple[Results, Path]) -> None:
    assert {item.name for item in report[0].candidates} == {"torch", "onnxruntime", "openvino"}
    assert report[0].reference == "torch"
    for item in report[0].candidates:
        assert item.error is None
        assert item.precision == "fp32"
        assert item.flips == (None if item.name == "torch" else 0)
        assert item.lost is item.gained is None if item.name == "torch" else item.lost == item.gained == 0
        assert item.drop_interval == (None if item.name == "torch" else (0.0, 0.0))
        assert 2 <= len(item.offline) <= 4
        assert {len(samples) for samples in item.latency_ms} == {8}
        assert (item.peak_memory_bytes or 0) > 10_000_000
        assert item.sequences == 40 == sum(report[0].lengths)
        assert item.real_tokens == sum(count * length for length, count in enumerate(report[0].lengths))
        assert item.real_tokens <= item.padded_tokens["offline"]


def test_all_candidates_have_the_same_threads_and_weights_or_it_is_said(
    trained: Path, classifier: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which some backends heed, and others do not
    plan = plan_for((trained, classifier), row_files[1], limit=4, backends=("torch",))
    plan = replace(plan, threads=None, repeats=1)
    with pytest.warns(UserWarning, match="classifier: not exported from the checkpoint of trained"):
        results = bench(plan, tmp_path / "report")
    assert results.threads == artifact.hardware()["cores"]
    with pytest.warns(UserWarning, match="10000 threads share"):
        assert running._with_threads(replace(plan, threads=10_000)).threads == 10_000


def test_the_time_from_text_to_answer_is_told_by_phase(report: tuple[Results, Path]) -> None:
    for item in report[0].candidates:
        for run in item.offline:
            assert list(run.phases_s) == ["tokenize", "upload", "compute", "download", "decode", "other"]
            assert min(run.phases_s.values()) >= 0
            assert sum(run.phases_s.values()) == pytest.approx(run.elapsed_s)


def test_the_report_is_an_artefact_that_tells_the_same_in_every_form(report: tuple[Results, Path]) -> None:
    result, out = report
    assert artifact.open_manifest(out, "report").task == "classify"
    assert Results.model_validate_json((out / "report.json").read_text()) == result
    for name in ("report.md", "report.html"):
        assert all(item.name in (out / name).read_text() for item in result.candidates)


def test_the_gate_refuses_a_broken_int8_and_takes_a_whole_artefact(
    trained: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken one cuts all inputs to a fiftieth of their range; its runtime does just what its graph says."""

    def narrow(*given: Any) -> list[QuantizedProduct]:
        return [replace(one, input_scale=one.input_scale / 50) for one in quantize(*given)]

    export(trained, tmp_path / "whole")
    monkeypatch.setattr(quantizing, "quantize", narrow)
    calibration = ExportPlan(
        calibration=write_rows(tmp_path / "texts.jsonl", labelled_rows(300, 5)), rounding="nearest"
    )
    export(trained, tmp_path / "broken", precision=Precision.INT8, plan=calibration)
    for name in ("whole", "broken"):
        plan = plan_for(
            (trained, tmp_path / name),
            row_files[1],
            backends=("torch", "onnxruntime"),
            scenarios=(Scenario.OFFLINE,),
            limits=Limits(max_drop=1.0),
        )
        out = tmp_path / f"report-{name}"
        verdict = bench(plan, out).verdict
        assert verdict is not None
        assert verdict.ship == (name == "whole")
        assert verdict.summary in (out / "report.md").read_text()
        assert ("accuracy drops by" in str(verdict.refused)) == (name == "broken")
    assert verdict.choice == "torch"


def test_without_labels_there_is_speed_only(classifier: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "The river."}\n{"text": "The old bridge."}\n')
    result = bench(plan_for((classifier,), data, commit="1a2b3c"), tmp_path / "report")
    assert result.commit == "1a2b3c"
    assert result.metric is None
    assert not result.labelled
    assert result.candidates[0].metrics == {}
    assert result.candidates[0].offline
    with pytest.raises(DataError, match="--max-drop is judged by right answers, and texts.jsonl has none"):
        bench(plan_for((classifier,), data, limits=Limits(max_drop=1)), tmp_path / "other")


def test_all_scenarios_and_shapes_in_one_run(exported: Path, row_files: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_for(
        (exported,),
        row_files[1],
        backends=("onnxruntime",),
        scenarios=tuple(Scenario),
        limits=Limits(max_p99_ms=20.0),
        server_requests=20,
        grid=((1, 16), (2, 64)),
    )
    result = bench(plan, tmp_path / "report")
    (item,) = result.candidates
    assert item.error is None
    assert len(item.offline_given) >= 2
    assert set(item.padded_tokens) == {"offline", "offline-given"}
    assert item.server
    assert all(len(run.latency_ms) >= 20 for run in item.server)
    assert [(cell.batch_size, cell.length, len(cell.compute_s)) for cell in item.grid] == [(1, 16, 2), (2, 64, 2)]
    assert result.bound_p99_ms == 20.0


def dying(backend: str, moment: str) -> Callable[..., Worker]:
    """A worker of ours for each candidate, of which that of one backend is killed when it is asked for something."""

    class Dying(Worker):
        ours: str | None = None

        def ask(self, do: str, timeout_s: float, **arguments: Any) -> Any:
            if do == "load":
                self.ours = arguments["job"]["backend"]
            if (self.ours, do) == (backend, moment):
                self._process.kill()
            return super().ask(do, timeout_s, **arguments)

    return Dying


def test_a_candidate_that_dies_is_a_row_and_the_others_go_on(
    classifier: Path, exported: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("openvino", "offline"))
    result = bench(plan_for((classifier, exported), row_files[1]), tmp_path / "report")
    rows = {item.name: item for item in result.candidates}
    assert "the process was killed during 'offline' (signal 9)" in (rows["openvino"].error or "")
    assert rows["torch"].error is rows["onnxruntime"].error is None
    assert len(rows["torch"].offline) >= 2
    assert "the process was killed" in (tmp_path / "report" / "report.md").read_text()


def test_a_reference_that_dies_leaves_the_others_a_reference(
    exported: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("onnxruntime", "load"))
    result = bench(plan_for((exported,), row_files[1]), tmp_path / "report")
    assert result.reference == "openvino"
    assert {item.name: item.error is None for item in result.candidates} == {"onnxruntime": False, "openvino": True}


def make_peer(folder: Path, variants: str) -> Path:
    """The fake candidate as a peer, in an environment that has nothing installed."""
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("fake.py"), folder / "peer.py")
    (folder / "variants.toml").write_text(variants)
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    return folder


class Impatient(Worker):
    """Waits half a second for an answer that will not come; for the others, as long as it takes."""

    hangs = False

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> Any:
        self.hangs = self.hangs or (do == "load" and arguments["job"]["backend"] == "hanging")
        return super().ask(do, 0.5 if self.hangs and do == "predict" else timeout_s, **arguments)


def test_peers_are_measured_beside_ours_and_how_they_fail_is_a_row(
    classifier: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", Impatient)
    variants = "".join(
        f"[{name}]\nbatch_size = 4\n{options}\n"
        for name, options in {
            "plain": "",
            "nan": 'by = "nan"',
            "greedy": 'fails_at = 2\nby = "memory"',
            "hanging": 'fails_at = 1\nby = "hang"',
            "silent": "keys = ['label']",
        }.items()
    )
    peer = make_peer(tmp_path / "fake", variants)
    plan = plan_for((classifier,), row_files[1], peers=(str(peer),), scenarios=(Scenario.OFFLINE,))
    result = bench(plan, tmp_path / "report")
    rows = {item.name: item for item in result.candidates}
    assert list(rows) == ["torch", *(f"fake {name}" for name in ("plain", "nan", "greedy", "hanging", "silent"))]
    plain = rows["fake plain"]
    assert (plain.error, plain.system, plain.backend, plain.batch_size) == (None, "fake", "plain", 4)
    assert plain.artefact_sha256 == rows["torch"].artefact_sha256
    assert plain.libraries["prefix"].endswith(".venv")
    assert plain.sequences == 40
    assert plain.real_tokens is None
    assert plain.padded_tokens == {}
    assert plain.metrics["accuracy"] < 1
    assert plain.flips is not None
    assert rows["fake nan"].not_finite == 40
    assert rows["fake nan"].metrics == {}
    not_scored = "40 of its answers hold numbers that are NaN or infinite, so its answers are not scored."
    assert rows["fake nan"].warnings[0] == not_scored
    assert len(rows["fake nan"].offline) >= 2
    assert "out of memory during 'offline'" in (rows["fake greedy"].error or "")
    assert "no answer to 'predict' within 0.5 s" in (rows["fake hanging"].error or "")
    assert "its answers are not of the form of classify: KeyError: 'scores'" in (rows["fake silent"].error or "")
    assert rows["torch"].error is None


def test_golds_that_nothing_can_be_judged_by_are_refused_before_anything_is_measured(
    reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Worker", dying("torch", "measure"))
    data = write_rows(tmp_path / "dev.jsonl", [{"text": "The river.", "pair": "waits", "label": 1}] * 2)
    done: list[str] = []
    with pytest.raises(DataError, match="Give it pairs of both kinds"):
        bench(plan_for((reranker,), data), tmp_path / "report", notify=lambda what, *_: done.append(what))
    assert not done


def test_each_candidate_s_score_is_resampled_once_and_said_to_be(
    classifier: Path, exported: Path, row_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many rows that takes minutes."""
    done: list[str] = []

    def counted(*given: Any) -> list[float] | None:
        done.append("resampled")
        return resampled(*given)

    monkeypatch.setattr(accuracy, "resampled", counted)
    plan = plan_for((classifier, exported), row_files[1], scenarios=(Scenario.OFFLINE,))
    bench(plan, tmp_path / "report", notify=lambda what, *_: done.append(what))
    assert done[-7:] == [
        *("torch: resample its score", "resampled"),
        *("onnxruntime: compare with torch", "resampled"),
        *("openvino: compare with torch", "resampled"),
        "done",
    ]


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
    assert (item.sequences or 0) > 40  # 20 by the default stride
    assert {len(samples) for samples in item.latency_ms} == {3}
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
    with pytest.raises(ConfigError, match="--max-p99-ms"):
        bench(plan_for((exported,), row_files[1], scenarios=(Scenario.SERVER,)), tmp_path / "report")
    for limits, scenario in ((Limits(min_speedup=2), Scenario.SINGLE_STREAM), (Limits(max_p99_ms=2), Scenario.OFFLINE)):
        with pytest.raises(ConfigError, match="is judged by the scenario"):
            bench(plan_for((exported,), row_files[1], limits=limits, scenarios=(scenario,)), tmp_path / "report")
    with pytest.raises(ConfigError, match=r"batches of 65 tokens, and .* takes 64"):
        bench(plan_for((exported,), row_files[1], grid=((1, 65),)), tmp_path / "report")
    strange = tmp_path / "rows.jsonl"
    strange.write_text(json.dumps({"text": "a", "label": "sea"}) + "\n")
    with pytest.raises(DataError, match="has the label 'sea'"):
        bench(plan_for((classifier,), strange), tmp_path / "report")
    assert not (tmp_path / "report").exists()
