from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import bertfast
from bertfast.errors import DataError
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context
from bertfast.tasks.rerank import RERANK, RerankSettings
from bertfast.text.labelled import Columns, Example
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import NOUNS, TINY_FINETUNE, VERBS, write_rows


def read(path: Path, rows: list[dict[str, Any]], golds_needed: bool = True) -> list[Example]:
    return RERANK.read(write_rows(path / "rows.jsonl", rows), Columns(), RerankSettings(), golds_needed)


def test_the_gold_is_the_grade_under_its_query(tmp_path: Path) -> None:
    rows = [{"query": "a river", "passage": "a bridge", "label": 1}, {"query": "a", "passage": "b", "label": "0.25"}]
    assert [example.gold for example in read(tmp_path, rows)] == [("a river", 1.0), ("a", 0.25)]
    bare = read(tmp_path, [{"query": "a", "passage": "b"}], golds_needed=False)
    assert bare == [Example({"text": "a", "pair": "b"}, None, bare[0].where)]
    RERANK.refuse(bare, ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 1}, r"rows.jsonl:1 is one text.*--pair-column"),
        (
            {"text": "a", "pair": "b", "label": 3},
            r"rows.jsonl:1: 'label' is 3, and a number from 0 .* divide by the highest",
        ),
        ({"text": "a", "pair": "b", "label": -0.1}, r"rows.jsonl:1: 'label' is -0.1, and a number from 0"),
        ({"text": "a", "pair": "b", "label": "nan"}, r"rows.jsonl:1: 'label' is 'nan', and a number is needed"),
        ({"text": "a", "pair": "b", "label": "yes"}, r"rows.jsonl:1: 'label' is 'yes', and a number is needed"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [row])


def test_pairs_with_grades_of_another_kind_are_read_where_none_is_needed(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 1 labels are passed over"):
        (example,) = read(tmp_path, [{"query": "a", "passage": "b", "score": 17.3}], golds_needed=False)
    assert example.gold is None


def test_a_request_without_a_pair_is_refused(reranker: Path) -> None:
    with pytest.raises(DataError, match="needs 'text' and 'pair'; this one has text"):
        RERANK.check({"text": "a"})
    RERANK.check({"text": "a", "pair": "b"})


@pytest.mark.parametrize(("activation", "expected"), [("sigmoid", [0.5, 1.0, 0.0]), ("identity", [0.0, 900.0, -900.0])])
def test_a_score_is_the_logit_s_activation(tokenizer: Tokenizer, activation: Any, expected: list[float]) -> None:
    context = Context(tokenizer, ("LABEL_0",), 32, RerankSettings(activation=activation))
    logits = np.array([[0.0], [900.0], [-900.0]], np.float32)
    assert [answer["score"] for answer in RERANK.decode({"logits": logits}, [], context)] == expected


def test_the_loss_is_the_cross_entropy_with_the_grade() -> None:
    outputs, targets = {"logits": torch.tensor([[0.0], [2.0]])}, {"grades": torch.tensor([1.0, 0.25])}
    chance = 1 / (1 + np.exp(-2.0))
    expected = np.log(2) - 0.25 * np.log(chance) - 0.75 * np.log(1 - chance)
    assert RERANK.losses(outputs, targets, RerankSettings())["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert RERANK.correct(outputs, targets)["loss"].item() == 0


def test_the_metrics_are_over_all_pairs_and_within_each_query() -> None:
    answers = [{"score": score} for score in (0.9, 0.8, 0.1, 0.7)]
    golds = [("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0)]
    found = RERANK.score(answers, golds)
    assert found["average_precision"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (found["mrr@10"], found["queries"]) == (0.75, 2)
    single = RERANK.score(answers[:2], [("a", 0.0), ("b", 1.0)])
    assert list(single) == ["average_precision"]
    for grade in (0.0, 1.0):
        with pytest.raises(DataError, match=r"of the 4 pairs.*Give it pairs of both kinds"):
            RERANK.score(answers, [("a", grade)] * 4)


def test_dev_pairs_of_one_kind_are_refused_before_anything_is_trained(pretrained: Path, tmp_path: Path) -> None:
    rows = rows_with_an_answer(2, 1)
    train = write_rows(tmp_path / "train.jsonl", rows)
    dev = write_rows(tmp_path / "dev.jsonl", [row for row in rows if row["label"]])
    with pytest.raises(DataError, match="2 of the 2 pairs.*Give it pairs of both kinds"):
        finetune(open_checkpoint(pretrained), RERANK, train, dev, tmp_path / "m", TINY_FINETUNE)
    assert not list(tmp_path.glob("m*"))


def test_transformers_opens_ours_with_one_logit(reranker: Path) -> None:
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(reranker, output_loading_info=True)
    assert model.config.num_labels == 1
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def rows_with_an_answer(count: int, seed: int) -> list[dict[str, Any]]:
    """Each query has four candidates; the one that says where answers it."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        query, said = f"Where is the {rng.choice(NOUNS)} {number}?", ["near", *["and"] * 3]
        candidates = [
            f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} it {word} the garden." for word in rng.sample(said, 4)
        ]
        rows += [{"text": query, "pair": text, "label": int("near" in text)} for text in candidates]
    return rows


def test_the_answer_of_a_query_rises_to_the_top(pretrained: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows_with_an_answer(40, 1))
    dev = write_rows(tmp_path / "dev.jsonl", rows_with_an_answer(10, 2))
    settings = {"learning_rate": 3e-3, "epochs": 20, "global_batch_size": 16, "bucket_batches": 1}
    config = TINY_FINETUNE.model_copy(update={**settings, "checkpoint_every_steps": 1000})
    result = finetune(open_checkpoint(pretrained), RERANK, train, dev, tmp_path / "m", config)
    assert result["dev_queries"] == 10
    assert result["dev_mrr@10"] > 0.9
    assert result["dev_average_precision"] > 0.8
    export(tmp_path / "m", tmp_path / "onnx")
    texts = [f"The lantern waits {word} the garden." for word in ("near", "and")]
    with bertfast.load(tmp_path / "onnx") as model:
        right, wrong = model.predict([("Where is the river 3?", text) for text in texts])
    assert right["score"] > 0.5 > wrong["score"]
