"""benchmarks/: what is asked of all sides is the same, and no run is done twice or taken for another commit's."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import provenance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import distill, finetune, pretraining_helps, sst2
from benchmarks.finetune import DataSet, Run, Source
from benchmarks.peers.transformers.job import Job
from bertfast.backends import backends_for, open_served
from bertfast.config import FinetuneConfig, read_settings
from bertfast.model.weights import open_checkpoint

SUITE = finetune.read_suite(finetune.SUITE)


def test_the_suite_is_what_is_to_be_measured() -> None:
    assert sorted(SUITE) == ["banking77", "nli", "squad", "sst2", "stsb", "wnut17"]
    assert all(1 <= (data_set.train.rows or 0) <= 5000 for data_set in SUITE.values())
    assert all(data_set.train != data_set.dev for data_set in SUITE.values())


@pytest.mark.parametrize("name", SUITE)
def test_both_sides_are_asked_the_same(name: str) -> None:
    run = Run(SUITE[name], Path("model"), Path("train.jsonl"), Path("dev.jsonl"), seed=2, threads=2)
    job = Job(**finetune.peer_job(run, grouped=True))
    command = finetune.our_command(run, Path("out"))
    words = [word for option, word in itertools.pairwise(command) if option == "--set"]
    ours = FinetuneConfig.parse(read_settings(None, words), "command").model_dump()
    ours |= {"batch_size": ours["global_batch_size"], "task": command[command.index("train") + 1]}
    for option in ("model", "train", "dev"):
        ours[option] = command[command.index(f"--{option}") + 1]
    theirs = dataclasses.asdict(job)
    assert theirs.pop("group_by_length") is True
    assert theirs == {key: ours[key] for key in theirs}
    assert theirs["learning_rate"] == SUITE[name].learning_rate
    assert ours["precision"] == "bf16"
    assert ours["adam_epsilon"] == 1e-8


@given(count=st.integers(1, 300), wanted=st.integers(1, 300))
def test_a_drawn_sample_is_the_same_every_time_and_in_order(count: int, wanted: int) -> None:
    drawn = finetune.draw(count, wanted)
    assert drawn == finetune.draw(count, wanted) == sorted(set(drawn))
    assert len(drawn) == min(count, wanted)
    assert set(drawn) <= set(range(count))


def rows_of(source: Source, folder: Path) -> list[dict[str, Any]]:
    path = finetune.prepare(source, folder, folder / "out" / "train")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_tables_become_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,category\n"two\nlines, one text",x\n', encoding="utf-8", newline="")
    (tmp_path / "b.tsv").write_text('sentence\tlabel\nan open " quote\t1\n', encoding="utf-8")
    assert rows_of(Source(file="a.csv", columns=("text", "category")), tmp_path) == [
        {"text": "two\nlines, one text", "label": "x"}
    ]
    assert rows_of(Source(file="b.tsv", columns=("sentence", "label")), tmp_path) == [
        {"text": 'an open " quote', "label": "1"}
    ]


def test_labels_are_left_out_where_no_column_is_named_for_them(tmp_path: Path) -> None:
    (tmp_path / "b.tsv").write_text("sentence\tlabel\nfine\t1\n", encoding="utf-8")
    assert rows_of(Source(file="b.tsv", columns=("sentence",)), tmp_path) == [{"text": "fine"}]


def test_a_split_is_chosen_by_its_column(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "c.tsv.gz", "wt", encoding="utf-8") as sink:
        sink.write("split\tscore\tsentence1\tsentence2\ntrain\t5.0\ta\tb\ndev\t1.0\tc\td\n")
    source = Source(file="c.tsv.gz", columns=("sentence1", "sentence2", "score"), split="dev")
    assert rows_of(source, tmp_path) == [{"text": "c", "pair": "d", "label": "1.0"}]


def test_sentences_are_drawn_from_conll(tmp_path: Path) -> None:
    sentences = [f"w{number}\tO\nx\tB-a" for number in range(9)]
    (tmp_path / "a.conll").write_text("\n\n".join(sentences) + "\n\n", encoding="utf-8")
    path = finetune.prepare(Source(file="a.conll", rows=4), tmp_path, tmp_path / "out" / "train")
    assert path.read_text(encoding="utf-8").strip("\n").split("\n\n") == [sentences[i] for i in finetune.draw(9, 4)]


def test_questions_are_drawn_from_squad(tmp_path: Path) -> None:
    def paragraph(name: str, questions: int) -> dict[str, Any]:
        return {"context": name, "qas": [{"id": f"{name}{number}"} for number in range(questions)]}

    articles = [{"title": name, "paragraphs": [paragraph(name, 3)]} for name in "abcdef"]
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    path = finetune.prepare(Source(file="a.json", rows=2), tmp_path, tmp_path / "out" / "train")
    kept = [paragraph for article in json.loads(path.read_text())["data"] for paragraph in article["paragraphs"]]
    ids = [f"{name}{number}" for name in "abcdef" for number in range(3)]
    assert [question["id"] for paragraph in kept for question in paragraph["qas"]] == [
        ids[i] for i in finetune.draw(18, 2)
    ]
    assert all(paragraph["qas"] for paragraph in kept)


def test_every_system_begins_once() -> None:
    order = [name for _, name in finetune.turns([5, 6, 7])]
    assert sorted(order[:3]) == sorted(finetune.SYSTEMS)
    assert {order[0], order[3], order[6]} == set(finetune.SYSTEMS)
    assert [seed for seed, _ in finetune.turns([5, 6])] == [5, 5, 5, 6, 6, 6]
    assert [seed for seed, name in finetune.turns([5, 6], [6]) if name == finetune.UNGROUPED] == [6]
    assert [seed for seed, _ in finetune.turns([5, 6], [6])] == [5, 5, 6, 6, 6]


@pytest.fixture
def tiny_suite(tmp_path: Path) -> dict[str, DataSet]:
    (tmp_path / "a.tsv").write_text("sentence\tlabel\nfine\t1\n", encoding="utf-8")
    source = Source(file="a.tsv", columns=("sentence", "label"))
    values: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 1, "batch_size": 2, "max_length": 16}
    return {"tiny": DataSet(task="classify", metrics=("accuracy",), train=source, dev=source, **values)}


WORK = {"metrics": {"accuracy": 0.5}, "train_s": 1.0, "process_s": 2.0, "steps": 3, "windows": {"train": 6, "dev": 2}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What provenance.provenance() says, and the commit that is checked after each run; change it to go elsewhere."""
    here = {"commit": "abc", "hardware": {"cpu": "a", "cores": 2}, "command": "python a.py", "libraries": {}}
    monkeypatch.setattr(provenance, "commit", lambda: here["commit"])
    monkeypatch.setattr(finetune, "provenance", lambda: dict(here))
    monkeypatch.setattr(finetune, "minilm", lambda: Path("model"))
    return here


def test_a_run_that_is_there_is_not_run_again(
    tiny_suite: dict[str, DataSet], tmp_path: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def fake(run: Run) -> dict[str, Any]:
        asked.append((run.data_set.learning_rate, run.seed))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return WORK

    monkeypatch.setattr(finetune, "SYSTEMS", dict.fromkeys(finetune.SYSTEMS, fake))
    options = argparse.Namespace(
        out=tmp_path / "out.json", data=tmp_path, seeds=[0, 1], ungrouped_seeds=None, threads=2
    )
    with pytest.raises(KeyboardInterrupt):
        finetune.measure(tiny_suite, options)
    assert len(finetune.measure(tiny_suite, options)) == 6
    assert [seed for _, seed in asked] == [0, 0, 0, 1, 1, 1, 1]
    other = {"tiny": tiny_suite["tiny"].model_copy(update={"learning_rate": 2e-4})}
    options.seeds = [0]
    finetune.measure(other, options)
    assert asked[7:] == [(2e-4, 0)] * 3


@pytest.mark.parametrize(
    "elsewhere", [{"commit": "def"}, {"hardware": {"cpu": "a", "cores": 4}}, {"commit": "abc-dirty"}]
)
def test_a_run_from_elsewhere_is_made_again_and_stays_in_the_file(
    elsewhere: dict[str, Any], tmp_path: Path, measured: dict[str, Any]
) -> None:
    out, made = tmp_path / "new" / "out.json", iter(range(9))

    def made_now() -> int:
        row: int = provenance.run_once(out, {"seed": 0}, measured, lambda: {"number": next(made)})["number"]
        return row

    assert [made_now(), made_now()] == [0, 0]
    measured |= elsewhere
    assert made_now() == 1
    assert [row["commit"] for row in provenance.read_runs(out)] == ["abc", measured["commit"]]
    assert [row["command"] for row in provenance.read_runs(out)] == ["python a.py"] * 2
    assert made_now() == (2 if "-dirty" in measured["commit"] else 1)


def test_a_run_during_which_the_commit_changed_is_not_kept(tmp_path: Path, measured: dict[str, Any]) -> None:
    at_start = dict(measured)

    def pull() -> dict[str, Any]:
        measured["commit"] = "def"
        return {}

    with pytest.raises(SystemExit, match="abc became def"):
        provenance.run_once(tmp_path / "out.json", {"seed": 0}, at_start, pull)
    assert provenance.read_runs(tmp_path / "out.json") == []


@pytest.mark.parametrize("other", [{"steps": 4}, {"windows": {"train": 6, "dev": 3}}])
def test_systems_that_do_other_work_are_not_compared(
    other: dict[str, Any],
    tiny_suite: dict[str, DataSet],
    tmp_path: Path,
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = finetune.SYSTEMS
    fakes = {first: lambda run: WORK, second: lambda run: WORK | other, third: lambda run: WORK}
    monkeypatch.setattr(finetune, "SYSTEMS", fakes)
    options = argparse.Namespace(out=tmp_path / "out.json", data=tmp_path, seeds=[0], ungrouped_seeds=None, threads=2)
    with pytest.raises(SystemExit, match=f"tiny: the {next(iter(other))} differ"):
        finetune.measure(tiny_suite, options)
    assert len(provenance.read_runs(options.out)) == 2


def test_our_windows_are_counted(tmp_path: Path, tiny_suite: dict[str, DataSet], pretrained: Path) -> None:
    paragraph = {
        "context": "the good film " * 20,
        "qas": [{"id": str(i), "question": "the film", "answers": [{"text": "the", "answer_start": 0}]} for i in "ab"],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "a", "paragraphs": [paragraph]}]}))
    asked = tiny_suite["tiny"].model_copy(update={"task": "qa"})
    windows = finetune.our_windows(Run(asked, pretrained, path, path, seed=0, threads=1))
    assert windows["train"] == windows["dev"] > 2
    assert windows["dev"] % 2 == 0


def test_the_table_compares_with_the_better_peer(tiny_suite: dict[str, DataSet]) -> None:
    seconds = dict(zip(finetune.SYSTEMS, (10.0, 40.0, 25.0), strict=True))
    runs = [
        {
            "data_set": "tiny",
            "system": system,
            "seed": seed,
            "metrics": {"accuracy": 0.5 + seed / 10},
            "train_s": value,
            "process_s": value + 5,
        }
        for system, value in seconds.items()
        for seed in (0, 1)
    ]
    row = finetune.table(tiny_suite, runs).split("\n")[-1]
    spread = "55.00 ± 7.07"
    assert row == (
        f"| tiny | accuracy | {spread} | {spread} | {spread} | 10.0 / 40.0 / 25.0 | 2.50 | 15.0 / 45.0 / 30.0 | 2.00 |"
    )
    without = [run for run in runs if run["system"] != finetune.UNGROUPED]
    assert finetune.table(tiny_suite, without).split("\n")[-1] == (
        f"| tiny | accuracy | {spread} | - | {spread} | 10.0 / - / 25.0 | 2.50 | 15.0 / - / 30.0 | 2.00 |"
    )


def test_students_share_all_but_the_teacher(
    tmp_path: Path, classifier: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, FinetuneConfig, Path | None]] = []

    def fake(out: Path, files: object, config: FinetuneConfig, teacher: Path | None) -> dict[str, Any]:
        asked.append((out.name, config, teacher))
        return {"dev_accuracy": 0.5 + config.seed / 10, "train_s": 1.0, "steps": 3}

    monkeypatch.setattr(distill, "train", fake)
    monkeypatch.setattr(distill, "provenance", lambda: dict(measured))
    options = argparse.Namespace(out=tmp_path, teacher=classifier, rows=9, seeds=[0, 1], threads=1)
    runs = distill.measure(options, (tmp_path / "train", tmp_path / "dev"))
    assert [name for name, _, _ in asked] == ["distilled0", "alone0", "distilled1", "alone1"]
    assert [teacher for _, _, teacher in asked] == [classifier, None] * 2
    assert asked[0][1] == asked[1][1]
    assert {config.layers for _, config, _ in asked} == {3}
    assert distill.summary(runs)["alone"] == pytest.approx({"mean": 0.55, "deviation": 0.1 / 2**0.5})
    assert distill.measure(options, (tmp_path / "train", tmp_path / "dev")) == runs
    assert len(asked) == 4


def test_a_seed_of_another_commit_is_run_again(
    tmp_path: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fake(data: Path, out: Path, config: FinetuneConfig) -> dict[str, Any]:
        asked.append(config.seed)
        return {"accuracy": 0.5 + len(asked) / 10}

    monkeypatch.setattr(sst2, "run", fake)
    monkeypatch.setattr(sst2, "provenance", lambda: dict(measured))
    first = sst2.accuracy(tmp_path, tmp_path, [0, 1])
    assert first["mean"] == pytest.approx(0.65)
    assert sst2.accuracy(tmp_path, tmp_path, [0, 1]) == first
    measured["commit"] = "def"
    sst2.accuracy(tmp_path, tmp_path, [1])
    assert asked == [0, 1, 1]


def test_backends_that_are_here_are_asked_whether_they_agree(
    classifier: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    found = sst2.agreement(classifier, tmp_path / "onnx", row_files[1])
    names = [name for path in (classifier, tmp_path / "onnx") for name in backends_for(open_served(path))]
    assert set(names) >= {"torch", "onnxruntime", "openvino"}
    assert found == {"rows": 40, "differing_labels": dict.fromkeys(names, 0), "executed": dict.fromkeys(names, "fp32")}


def test_only_the_pretrained_run_begins_with_the_weights(
    tiny_suite: dict[str, DataSet],
    tmp_path: Path,
    pretrained: Path,
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, bool, int]] = []

    def fake(start: object, out: Path, files: object, config: FinetuneConfig, *, from_scratch: bool) -> dict[str, Any]:
        asked.append((out.name, from_scratch, config.max_length))
        return {"dev_accuracy": 0.5, "train_s": 1.0, "steps": 3}

    monkeypatch.setattr(pretraining_helps, "train", fake)
    monkeypatch.setattr(pretraining_helps, "provenance", lambda: dict(measured))
    long = tiny_suite["tiny"].model_copy(update={"max_length": 4096})
    monkeypatch.setattr(pretraining_helps, "read_suite", lambda path: {"nli": long})
    options = argparse.Namespace(data=tmp_path, model=pretrained, out=tmp_path, rows=None, seeds=[3], threads=1)
    options.set = ["learning_rate=3e-4"]
    runs = pretraining_helps.measure(options)
    assert [run["settings"]["learning_rate"] for run in runs] == [3e-4, 3e-4]
    positions = open_checkpoint(pretrained).config.max_position_embeddings
    assert asked == [("pretrained3", False, positions), ("from_scratch3", True, positions)]
    assert pretraining_helps.measure(options) == runs
    assert len(asked) == 2


@pytest.mark.data
def test_what_is_evaluated_has_the_labels_that_are_learnt(data_folder: Path, tmp_path: Path) -> None:
    for name in ("sst2", "nli", "banking77"):
        sources = {"train": SUITE[name].train, "dev": SUITE[name].dev}
        labels = {}
        for part, source in sources.items():
            path = finetune.prepare(source, data_folder, tmp_path / name / part)
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
            assert source.rows in (None, len(rows))
            labels[part] = {row["label"] for row in rows}
        assert labels["train"] == labels["dev"]
