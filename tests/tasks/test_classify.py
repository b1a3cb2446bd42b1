"""Classification: weights of labels, metrics and the table of what was taken for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertfast.errors import ConfigError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context
from bertfast.tasks.classify import CLASSIFY, ClassifySettings, class_weights, confusion, score
from bertfast.text.labelled import Example
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, labelled_rows, write_rows

NAMES = ("ham", "spam", "eggs")
GOLDS = ["ham", "ham", "ham", "spam", "spam", "eggs"]
GIVEN = ["ham", "ham", "spam", "spam", "ham", "ham"]


def context(tokenizer: Tokenizer, **settings: Any) -> Context:
    return Context(tokenizer, NAMES, 32, ClassifySettings.parse(settings, "test"))


def answers(given: list[str]) -> list[dict[str, Any]]:
    return [{"label": label, "score": 1.0, "scores": dict.fromkeys(NAMES, 0.0)} for label in given]


def test_metrics_are_those_of_the_field() -> None:
    found = score(answers(GIVEN), GOLDS)
    # By hand: recall and precision of ham 2/3 and 2/4, of spam 1/2 and 1/2, eggs are never given.
    assert found["accuracy"] == found["micro_f1"] == pytest.approx(0.5)
    assert found["macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert found["mcc"] == pytest.approx((3 * 6 - 16) / np.sqrt((36 - 20) * (36 - 14)))
    assert found["majority"] == pytest.approx(0.5)


def test_rows_of_one_label_have_no_correlation() -> None:
    assert score(answers(["ham", "ham"]), ["ham", "ham"])["mcc"] == 0.0


def test_the_confusion_table_has_a_row_for_each_label() -> None:
    (text,) = confusion(answers(GIVEN), GOLDS).values()
    assert [line.split("\t") for line in text.splitlines()] == [
        ["label", "ham", "spam", "eggs"],
        ["ham", "2", "1", "0"],
        ["spam", "1", "1", "0"],
        ["eggs", "1", "0", "0"],
    ]


@pytest.mark.parametrize(
    ("wanted", "weights"),
    [("none", [1, 1, 1]), ("balanced", [6 / 9, 6 / 6, 6 / 3]), ({"spam": 5}, [1, 5, 1])],
)
def test_weights_of_labels(tokenizer: Tokenizer, wanted: object, weights: list[float]) -> None:
    ids = np.array([NAMES.index(gold) for gold in GOLDS])
    assert class_weights(ids, context(tokenizer, class_weights=wanted)) == pytest.approx(weights)


def test_a_weight_of_no_label_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"class_weights names 'span', and the labels are ham.*Did you mean 'spam'"):
        class_weights(np.array([0]), context(tokenizer, class_weights={"span": 2}))
    with pytest.raises(ConfigError, match="class_weights"):
        context(tokenizer, class_weights={"spam": 0})


def test_the_loss_is_torch_s_weighted_mean(tokenizer: Tokenizer) -> None:
    settled = context(tokenizer, class_weights="balanced")
    features = CLASSIFY.features([Example({"text": "a"}, gold) for gold in GOLDS], settled)
    batch = features.batch(np.arange(6), 0)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = {name: torch.from_numpy(array) for name, array in batch.targets.items()}
    loss = (
        CLASSIFY.losses({"logits": logits}, targets, settled.settings)["loss"] / CLASSIFY.counts(batch.targets)["loss"]
    )
    weights = torch.tensor([6 / 9, 6 / 6, 6 / 3])
    expected = torch.nn.functional.cross_entropy(logits, targets["labels"], weight=weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_weighs_more_is_given_more_often(pretrained: Path, tmp_path: Path) -> None:
    files = (
        write_rows(tmp_path / "train.jsonl", labelled_rows(60, 1)),
        write_rows(tmp_path / "dev.jsonl", labelled_rows(40, 2)),
    )
    config = TINY_FINETUNE.model_copy(update={"max_steps": 12, "threads": 1})
    given = {}
    for weight in (0.001, 1000.0):
        settings, out = {"class_weights": {"tool": weight}}, tmp_path / f"m{weight}"
        finetune(open_checkpoint(pretrained), CLASSIFY, *files, out, config, task_settings=settings)
        lines = (out / "logs" / "confusion.tsv").read_text(encoding="utf-8").splitlines()
        header, *rows = [line.split("\t") for line in lines]
        assert sum(int(cell) for row in rows for cell in row[1:]) == 40
        given[weight] = sum(int(row[header.index("tool")]) for row in rows)
    assert given == {0.001: 0, 1000.0: 40}
