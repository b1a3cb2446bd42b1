from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import bertfast
from bertfast.errors import ConfigError, DataError
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.text.batch import Features
from bertfast.text.tokenizer import Encoded
from bertfast.train.finetune import FinetuneSource, finetune
from tests.conftest import TINY_FINETUNE, failing_after, labelled_rows, write_rows


def source(count: int, **changes: int) -> FinetuneSource:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, count)
    rows = [(Encoded([number] * int(length), [0] * int(length)),) for number, length in enumerate(lengths, 1)]
    data = Features(rows, {"labels": np.arange(count)})
    return FinetuneSource(data, 0, TINY_FINETUNE.model_copy(update=changes))


def test_an_epoch_holds_every_row_once() -> None:
    for epoch in range(3):
        data = source(101)
        steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
        seen = [label for step in steps for batch in data.micro_batches(step) for label in batch.targets["labels"]]
        assert sorted(seen) == list(range(101))


def test_batches_of_similar_length_hold_less_padding() -> None:
    def padding(bucket_batches: int) -> int:
        data = source(400, bucket_batches=bucket_batches)
        batches = [batch for step in range(data.steps_per_epoch) for batch in data.micro_batches(step)]
        return sum(batch.batch.input_ids.size - batch.batch.real_tokens for batch in batches)

    assert padding(16) < padding(1) / 2


def test_a_classifier_learns_and_answers_with_the_names_of_its_labels(
    pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    config = TINY_FINETUNE.model_copy(update={"epochs": 8, "learning_rate": 3e-3})
    result = finetune(open_checkpoint(pretrained), get_task("classify"), *row_files, tmp_path / "m", config)
    assert result["dev_accuracy"] > 0.9 > result["dev_majority"]
    with bertfast.load(tmp_path / "m") as model:
        answer = model.predict(["The river waits."])[0]
    assert answer["label"] == "nature"
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_what_is_not_packed_has_no_packing_efficiency(
    pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """On a CPU the layers leave its padding out."""
    config = TINY_FINETUNE.model_copy(update={"max_steps": 2})
    with pytest.warns(UserWarning, match="on dev is"):
        finetune(open_checkpoint(pretrained), get_task("classify"), *row_files, tmp_path / "m", config)
    logs = tmp_path / "m" / "logs"
    assert "real_tokens_per_s" in (logs / "metrics.jsonl").read_text()
    assert "packing" not in (logs / "metrics.jsonl").read_text() + (logs / "report.md").read_text()


def test_a_run_that_learnt_nothing_says_so(pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path) -> None:
    idle = TINY_FINETUNE.model_copy(update={"max_steps": 1, "learning_rate": 1e-12})
    with pytest.warns(UserWarning, match=r"accuracy on dev is [\d.]+%, and the commonest answer alone gives [\d.]+%"):
        finetune(open_checkpoint(pretrained), get_task("classify"), *row_files, tmp_path / "m", idle)


def test_the_head_is_kept_only_for_the_same_labels(
    classifier: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    frozen = TINY_FINETUNE.model_copy(update={"max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    before = read_tensors(classifier / "model.safetensors")["classifier.weight"]
    start = open_checkpoint(classifier)
    finetune(start, get_task("classify"), *row_files, tmp_path / "same", frozen)
    kept = read_tensors(tmp_path / "same" / "model.safetensors")["classifier.weight"]
    assert torch.allclose(before, kept, atol=1e-6)
    renamed = [row | {"label": row["label"].upper()} for row in labelled_rows(40, 3)]
    files = write_rows(tmp_path / "t.jsonl", renamed), write_rows(tmp_path / "d.jsonl", renamed)
    finetune(start, get_task("classify"), *files, tmp_path / "other", frozen)
    fresh = read_tensors(tmp_path / "other" / "model.safetensors")["classifier.weight"]
    assert not torch.allclose(before, fresh, atol=1e-2)


def test_pairs_are_told_apart_by_segment(pretrained: Path, tmp_path: Path) -> None:
    rows = [{"premise": "The river waits.", "hypothesis": "It waits.", "label": label} for label in ("yes", "no")] * 8
    file = write_rows(tmp_path / "rows.jsonl", rows)
    config = TINY_FINETUNE.model_copy(update={"max_steps": 2})
    finetune(open_checkpoint(pretrained), get_task("classify"), file, file, tmp_path / "m", config)
    with bertfast.load(tmp_path / "m") as model:
        one, other = model.predict([("The river", "the bridge"), "The river the bridge"])
    assert one["scores"] != other["scores"]


def test_bad_data_is_refused_before_anything_is_written(
    pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    start, task = open_checkpoint(pretrained), get_task("classify")
    strange = write_rows(tmp_path / "dev.jsonl", [{"text": "a", "label": "natur"}])
    with pytest.raises(DataError, match=r"has the label 'natur'.*Did you mean 'nature'"):
        finetune(start, task, row_files[0], strange, tmp_path / "m", TINY_FINETUNE)
    with pytest.raises(ConfigError, match="max_length 65 exceeds the 64 positions"):
        finetune(start, task, *row_files, tmp_path / "m", TINY_FINETUNE.model_copy(update={"max_length": 65}))
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"text": "a", "pair": "b", "label": "nature"}])
    with pytest.raises(DataError, match=r"asks about text, and .*pairs.jsonl about text and pair"):
        finetune(start, task, row_files[0], pairs, tmp_path / "m", TINY_FINETUNE)
    assert {path.name for path in tmp_path.iterdir()} == {"dev.jsonl", "pairs.jsonl"}


def test_truncated_rows_are_counted(pretrained: Path, tmp_path: Path) -> None:
    rows = [{"text": "The river waits. " * n, "label": str(n % 2)} for n in (1, 30, 2, 31)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    config = TINY_FINETUNE.model_copy(update={"max_steps": 1})
    result = finetune(open_checkpoint(pretrained), get_task("classify"), file, file, tmp_path / "m", config)
    assert result["train_truncated"] == 2


def test_what_the_old_data_decided_is_decided_anew(pretrained: Path, tmp_path: Path) -> None:
    """A reader that learnt from questions with answers learns from others that there may be none."""
    answered = {"question": "What?", "context": "The river waits.", "answers": [{"text": "river", "answer_start": 4}]}
    files = (
        write_rows(tmp_path / "v1.jsonl", [answered] * 4),
        write_rows(tmp_path / "v2.jsonl", [answered, answered | {"answers": []}]),
    )
    config, task = TINY_FINETUNE.model_copy(update={"max_steps": 1}), get_task("qa")
    start = open_checkpoint(pretrained)
    for file, expected in zip(files, (False, True), strict=True):
        finetune(start, task, file, file, tmp_path / file.stem, config)
        start = open_checkpoint(tmp_path / file.stem)
        assert start.task_settings["no_answer"] is expected


def test_pooling_stays_with_the_weights(pretrained: Path, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"text": f"river {i}", "pair": f"bridge {i}"} for i in range(8)])
    config, task = TINY_FINETUNE.model_copy(update={"max_steps": 1}), get_task("embed")
    cls = {"pooling": "cls", "scale": 5.0}
    finetune(open_checkpoint(pretrained), task, pairs, pairs, tmp_path / "a", config, task_settings=cls)
    finetune(open_checkpoint(tmp_path / "a"), task, pairs, pairs, tmp_path / "b", config)
    settings = open_checkpoint(tmp_path / "b").task_settings
    assert (settings["pooling"], settings["scale"]) == ("cls", 20.0)


def test_freezing_everything_is_refused(pretrained: Path, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"text": f"river {i}", "pair": f"bridge {i}"} for i in range(8)])
    config = TINY_FINETUNE.model_copy(update={"freeze_layers": 2})
    with pytest.raises(ConfigError, match="freeze_layers 2 leaves nothing to train.*freeze_layers=1"):
        finetune(open_checkpoint(pretrained), get_task("embed"), pairs, pairs, tmp_path / "m", config)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"evaluate_every_steps": 2}, "selects_every_steps"), ({}, "model"), ({"task": "multi-label"}, "dev")],
)
def test_a_run_goes_on_only_as_what_it_was(
    pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path, changes: dict[str, object], what: str
) -> None:
    start = open_checkpoint(pretrained)
    config = TINY_FINETUNE.model_copy(update={"keep": "best", "evaluate_every_steps": 4})
    with failing_after(6):
        finetune(start, get_task("classify"), *row_files, tmp_path / "m", config)
    if what == "model":
        shape = start.config.model_copy(update={"layer_norm_eps": 1e-5})
        start = dataclasses.replace(start, config=shape)
    task = get_task(str(changes.get("task", "classify")))
    config = config.model_copy(update={key: value for key, value in changes.items() if key != "task"})
    with pytest.raises(ConfigError, match=f"was started with {what}"):
        finetune(start, task, *row_files, tmp_path / "m", config, resume=True)


def test_what_says_little_is_said_to_say_little(pretrained: Path, tmp_path: Path) -> None:
    """Dev rows that were trained on, and a metric of 0 where no commonest label stands beside it."""
    rows = [{"tokens": ["The", "river"], "tags": ["O", "B-place"]}] * 4
    file = write_rows(tmp_path / "rows.jsonl", rows)
    tag = dataclasses.replace(get_task("tag"), score=lambda answers, golds: {"f1": 0.0})
    config = TINY_FINETUNE.model_copy(update={"max_steps": 1})
    with pytest.warns(UserWarning, match="rows|learnt") as said:
        finetune(open_checkpoint(pretrained), tag, file, file, tmp_path / "m", config)
    texts = [str(warning.message) for warning in said]
    assert any("rows.jsonl hold the same rows: what is found on dev says how well" in text for text in texts)
    assert any("nothing was learnt that shows. dev_f1 is 0." in text for text in texts)
