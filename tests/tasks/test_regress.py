"""Regression: numbers read, learnt, answered, and known to transformers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertfast
from bertfast.errors import DataError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks.regress import REGRESS, RegressSettings, score
from bertfast.text.labelled import Columns, Example
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, VERBS, write_rows

GRADES = {"river": 4.5, "bridge": 3.0, "lantern": 1.0, "garden": 0.5}


def graded_rows(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        noun = rng.choice(list(GRADES))
        rows.append(
            {"sentence1": f"The {noun} {rng.choice(VERBS)}.", "sentence2": "It waits.", "score": str(GRADES[noun])}
        )
    return rows


def examples(*golds: float) -> list[Example]:
    return [Example({"text": "a"}, gold) for gold in golds]


def answered(*scores: float) -> list[dict[str, float]]:
    return [{"score": value} for value in scores]


def test_numbers_are_learnt_and_answered_as_transformers_does(pretrained: Path, tmp_path: Path) -> None:
    files = (
        write_rows(tmp_path / "train.jsonl", graded_rows(120, 1)),
        write_rows(tmp_path / "dev.jsonl", graded_rows(40, 2)),
    )
    config = TINY_FINETUNE.model_copy(update={"epochs": 6, "learning_rate": 3e-3, "threads": 1})
    result = finetune(open_checkpoint(pretrained), REGRESS, *files, tmp_path / "m", config)
    assert result["dev_spearman"] > 0.9
    assert result["dev_mse"] < 0.3 * result["dev_variance"]
    with bertfast.load(tmp_path / "m") as model:
        (encoded,) = model.encode([{"text": "The river waits.", "pair": "It waits."}])[0]
        answer = model.predict([("The river waits.", "It waits.")])[0]
    assert set(answer) == {"score"}
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert (theirs.config.problem_type, theirs.config.num_labels) == ("regression", 1)
    with torch.no_grad():
        inputs = {"input_ids": [encoded.input_ids], "token_type_ids": [encoded.token_type_ids]}
        logits = theirs(**{name: torch.tensor(ids) for name, ids in inputs.items()}).logits
    assert answer["score"] == pytest.approx(logits.item(), rel=1e-4)


def test_it_begins_at_the_mean_of_the_labels(pretrained: Path) -> None:
    settings = REGRESS.settle(RegressSettings(), examples(1, 2, 6))
    assert settings == RegressSettings(mean=3.0)
    assert REGRESS.settle(RegressSettings(mean=1.0), examples(1, 2, 6)) == RegressSettings(mean=1.0)
    model = REGRESS.build(open_checkpoint(pretrained).config, 1, settings)
    assert model.classifier.bias.item() == 3.0  # type: ignore[union-attr, operator]


def test_bf16_tells_numbers_far_from_zero_apart(pretrained: Path) -> None:
    model = REGRESS.build(open_checkpoint(pretrained).config, 1, RegressSettings(mean=2005.0)).eval()
    ids = torch.arange(40).view(8, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        exact = model(**inputs)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(**inputs)["logits"]
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0, atol=0.05)  # the nearest numbers of bfloat16 are 2000 and 2008


def test_labels_that_a_model_cannot_learn_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 2 training labels are 3, so there is nothing to tell apart"):
        REGRESS.settle(RegressSettings(), examples(3, 3))
    with pytest.raises(DataError, match="all 3 training labels are 0.1"):
        REGRESS.settle(RegressSettings(), examples(0.1, 0.1, 0.1))
    with pytest.warns(UserWarning, match=r"spread by 500 around 500.*Divide the labels by 5e\+02"):
        REGRESS.settle(RegressSettings(), examples(0, 1000))


@pytest.mark.parametrize(("label", "given"), [('"high"', "'high'"), ("Infinity", "inf"), ("[1]", r"\[1\]")])
def test_a_label_that_is_no_number_is_named(tmp_path: Path, label: str, given: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "a", "score": 1}}\n{{"text": "a", "score": {label}}}\n')
    with pytest.raises(DataError, match=rf"rows.jsonl:2: 'score' is {given}, and .* is needed"):
        REGRESS.read(file, Columns(), RegressSettings(), True)


def test_metrics_tell_order_from_distance() -> None:
    same_order = score(answered(1, 2, 30), [0.0, 0.5, 1.0])
    assert same_order["spearman"] == pytest.approx(1)
    assert same_order["pearson"] < 0.9
    assert score(answered(1, 2), [1.0, 4.0])["mse"] == pytest.approx(2)
    assert score(answered(2, 2, 2), [1.0, 2.0, 3.0]) == {
        "spearman": 0.0,
        "pearson": 0.0,
        "mse": pytest.approx(2 / 3),
        "variance": pytest.approx(2 / 3),
    }


@pytest.mark.data
def test_stsb_is_read_with_its_grades(data_folder: Path) -> None:
    dev = REGRESS.read(data_folder / "stsb/stsbenchmark.tsv.gz:dev", Columns(), RegressSettings(), True)
    assert (len(dev), set(dev[0].request)) == (1500, {"text", "pair"})
    assert np.ptp([example.gold for example in dev]) == 5.0
