"""A student of a teacher: what it learns from it, what it refuses, and what it is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertfast import artifact
from bertfast.config import FinetuneConfig, ModelConfig
from bertfast.errors import ConfigError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.tasks.embed import EmbedSettings
from bertfast.text import tokenizer as tokenization
from bertfast.text.labelled import evenly_spread
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.distill import refuse_lessons_without_teacher, refuse_other_teacher
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, alike, failing_after, labelled_rows, weights, write_checkpoint, write_rows

Files = tuple[Path, Path]


def taught(
    start: Path, teacher: Path | None, files: Files, out: Path, *, resume: bool = False, **changes: object
) -> dict[str, Any]:
    config = TINY_FINETUNE.model_copy(update={"max_steps": 6, **changes})
    at = open_checkpoint(teacher) if teacher else None
    return finetune(open_checkpoint(start), get_task("classify"), *files, out, config, teacher=at, resume=resume)


@pytest.fixture(scope="module")
def teacher(pretrained: Path, row_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    config = TINY_FINETUNE.model_copy(update={"epochs": 12, "learning_rate": 3e-3})
    finetune(open_checkpoint(pretrained), get_task("classify"), *row_files, out, config)
    return out


def test_a_student_learns_from_its_teacher_alone(
    pretrained: Path, teacher: Path, row_files: Files, tmp_path: Path
) -> None:
    """With the whole weight on the teacher the labels of the training rows count for nothing, even wrong ones."""
    rows = labelled_rows(120, 1)
    names = sorted({row["label"] for row in rows})
    wrong = [row | {"label": names[(names.index(row["label"]) + 1) % 3]} for row in rows]
    files = write_rows(tmp_path / "wrong.jsonl", wrong), row_files[1]
    changes: dict[str, object] = {"max_steps": 240, "learning_rate": 3e-3}
    result = taught(pretrained, teacher, files, tmp_path / "student", distill_weight=1.0, **changes)
    assert result["dev_accuracy"] > 0.8
    misled = taught(pretrained, None, files, tmp_path / "misled", **changes)
    assert misled["dev_accuracy"] < 0.2


def test_the_weight_shares_the_loss_between_labels_and_teacher(
    pretrained: Path, teacher: Path, row_files: Files, tmp_path: Path
) -> None:
    changes: dict[str, object] = {"max_steps": 1, "log_every_steps": 1}

    def first_loss(name: str, at: Path | None, **more: object) -> float:
        taught(pretrained, at, row_files, tmp_path / name, **changes, **more)
        lines = (tmp_path / name / "logs" / "metrics.jsonl").read_text().splitlines()
        return float(json.loads(lines[0])["train_loss"])

    hard = first_loss("hard", None)
    soft = first_loss("soft", teacher, distill_weight=1.0)
    mixed = first_loss("mixed", teacher, distill_weight=0.25)
    assert abs(hard - soft) > 0.01
    assert mixed == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-5)


def test_a_student_that_goes_on_ends_with_the_same_weights(
    pretrained: Path, teacher: Path, row_files: Files, tmp_path: Path
) -> None:
    taught(pretrained, teacher, row_files, tmp_path / "whole")
    taught(pretrained, None, row_files, tmp_path / "alone")
    assert not alike(tmp_path / "whole", tmp_path / "alone")
    with failing_after(3):
        taught(pretrained, teacher, row_files, tmp_path / "cut")
    with pytest.raises(ConfigError, match="started with teacher = "):
        taught(pretrained, None, row_files, tmp_path / "cut", resume=True)
    taught(pretrained, teacher, row_files, tmp_path / "cut", resume=True)
    assert alike(tmp_path / "whole", tmp_path / "cut")
    parents = artifact.open_manifest(tmp_path / "cut").parents
    assert parents["teacher"] == open_checkpoint(teacher).sha256
    assert weights(teacher).keys() == weights(tmp_path / "cut").keys()


def test_a_teacher_of_something_else_is_refused(
    pretrained: Path, classifier: Path, row_files: Files, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"answers 'pretrain', and the student is to learn 'classify'"):
        taught(pretrained, pretrained, row_files, tmp_path / "m")
    two = write_checkpoint(tmp_path / "two", "classify", tiny_config, tokenizer, ("no", "yes"))
    with pytest.raises(ConfigError, match=r"labels no, yes, and the training data have building, nature, tool"):
        taught(pretrained, two, row_files, tmp_path / "m")
    labels = ("tool", "nature", "building")
    turned = write_checkpoint(tmp_path / "turned", "classify", tiny_config, tokenizer, labels)
    with pytest.raises(ConfigError, match=r"labels tool, nature, building, and .* have them in another order: build"):
        taught(pretrained, turned, row_files, tmp_path / "m")
    others = tokenization.train(lambda: ["quite another vocabulary than that of the student"], 120)
    shape = tiny_config.model_copy(update={"vocab_size": others.vocab_size})
    strange = write_checkpoint(tmp_path / "strange", "classify", shape, others, ("building", "nature", "tool"))
    with pytest.raises(ConfigError, match="another vocabulary than --model"):
        taught(pretrained, strange, row_files, tmp_path / "m")
    shape = tiny_config.model_copy(update={"max_position_embeddings": 16})
    short = write_checkpoint(tmp_path / "short", "classify", shape, tokenizer, ("building", "nature", "tool"))
    with pytest.raises(ConfigError, match="max_length 32 exceeds the 16 positions of --teacher"):
        taught(pretrained, short, row_files, tmp_path / "m")
    assert not list(tmp_path.glob("m*"))


def test_labels_of_a_teacher_whose_task_has_none_mean_nothing(encoder: Path) -> None:
    teacher = replace(open_checkpoint(encoder), labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    refuse_other_teacher(teacher, get_task("embed"), Context(teacher.tokenizer, (), 32, EmbedSettings()))


@pytest.mark.parametrize("name", ["distill_weight", "distill_temperature"])
def test_settings_of_a_lesson_need_a_teacher(name: str) -> None:
    refuse_lessons_without_teacher(TINY_FINETUNE)
    with pytest.raises(ConfigError, match=f"{name} = 0.5 is about a teacher, and there is none. Name one"):
        refuse_lessons_without_teacher(FinetuneConfig.parse({name: 0.5}, "settings"))


def test_a_student_takes_layers_of_the_start(
    row_files: Files, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    deep = tiny_config.model_copy(update={"num_hidden_layers": 6})
    start = write_checkpoint(tmp_path / "deep", "classify", deep, tokenizer, ("building", "nature", "tool"))
    still: dict[str, object] = {"max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    taught(start, None, row_files, tmp_path / "m", layers=3, **still)
    assert open_checkpoint(tmp_path / "m").config.num_hidden_layers == 3
    before, after = weights(start), weights(tmp_path / "m")
    for place, origin in enumerate((0, 2, 5)):
        name = "bert.encoder.layer.{}.attention.self.query.weight"
        assert torch.allclose(after[name.format(place)], before[name.format(origin)], atol=1e-6)
    assert torch.allclose(after["classifier.weight"], before["classifier.weight"], atol=1e-6)
    assert not any(name.startswith("bert.encoder.layer.3") for name in after)
    with pytest.raises(ConfigError, match="layers 7 exceeds the 6 layers of the model"):
        taught(start, None, row_files, tmp_path / "n", layers=7)
    with pytest.raises(ConfigError, match="freeze_layers 4 exceeds the 3 layers of the model"):
        taught(start, None, row_files, tmp_path / "n", layers=3, freeze_layers=4)


@given(st.data())
def test_layers_are_spread_evenly(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 48))
    places = evenly_spread(total, data.draw(st.integers(1, total)))
    steps = np.diff(places)
    assert places[0] == 0
    assert places[-1] == (total - 1 if len(places) > 1 else 0)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_six_of_twelve_layers_are_distilbert_s() -> None:
    assert evenly_spread(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly_spread(12, 12) == list(range(12))


SENTENCE = "The river waits near the old bridge."
ROWS: dict[str, list[dict[str, Any]]] = {
    "multi-label": [{"text": SENTENCE, "labels": labels} for labels in (["a"], ["a", "b"], [])] * 4,
    "regress": [{"text": SENTENCE * n, "label": n / 2} for n in (1, 2, 3)] * 4,
    "tag": [{"tokens": ["The", "river", "waits"], "tags": ["O", "B-WATER", "O"]}] * 8,
    "qa": [
        {"id": "1", "question": "What waits?", "context": SENTENCE, "answers": {"text": ["river"], "answer_start": [4]}}
    ]
    * 8,
    "rerank": [{"text": "What waits?", "pair": SENTENCE * n, "label": n % 2} for n in (1, 2, 3)] * 4,
    "embed": [{"text": "What waits?" * n, "pair": SENTENCE * n, "label": n / 2} for n in (1, 2, 3)] * 4,
}
ROWS |= {"embed pairs": [{"text": "What waits?" * n, "pair": SENTENCE * n} for n in (1, 2, 3)] * 4}


@pytest.mark.parametrize("data", ROWS)
def test_every_task_has_students(pretrained: Path, tmp_path: Path, data: str) -> None:
    """Whose loss is another than without a teacher, and of whom the best is kept."""
    file = write_rows(tmp_path / "rows.jsonl", ROWS[data])
    task = get_task(data.split()[0])
    config = TINY_FINETUNE.model_copy(update={"max_steps": 2, "evaluate_every_steps": 1, "keep": "best"})
    start = open_checkpoint(pretrained)
    finetune(start, task, file, file, tmp_path / "teacher", config)
    teacher = open_checkpoint(tmp_path / "teacher")
    result = finetune(start, task, file, file, tmp_path / "student", config, teacher=teacher)
    assert artifact.open_manifest(tmp_path / "student").parents["teacher"] == teacher.sha256
    assert result["best_step"] in (1, 2)
    first, other = (
        json.loads((tmp_path / name / "logs" / "metrics.jsonl").read_text().splitlines()[0])["train_loss"]
        for name in ("teacher", "student")
    )
    assert np.isfinite([first, other]).all()
    assert first != other
