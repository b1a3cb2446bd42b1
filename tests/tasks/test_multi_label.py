"""Multi-label classification: any number of labels a row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import bertfast
from bertfast.backends.predictor import Predictor
from bertfast.config import ModelConfig
from bertfast.errors import ConfigError, DataError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context, task_of
from bertfast.tasks.multi_label import MULTI_LABEL, MultiLabelSettings, score
from bertfast.text.batch import pad
from bertfast.text.labelled import Columns, Example
from bertfast.text.tokenizer import Encoded, Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import NOUNS, TINY_FINETUNE, VERBS, write_checkpoint, write_rows

NAMES = ("building", "nature", "tool")
KINDS = {"bridge": "building", "river": "nature", "engine": "tool"}


def kind_rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        nouns = rng.sample(list(KINDS), rng.randint(0, 3))
        rows.append({"text": f"A letter {' '.join(nouns)} waits.", "labels": [KINDS[noun] for noun in nouns]})
    return rows


def context_at(threshold: float, tokenizer: Tokenizer) -> Context:
    return Context(tokenizer, NAMES, 32, MultiLabelSettings(threshold=threshold))


def decode(logits: list[list[float]], context: Context) -> list[dict[str, Any]]:
    empty = [Encoded([], [])] * len(logits)
    return list(MULTI_LABEL.decode({"logits": np.array(logits, np.float32)}, empty, context))


logits_of_rows = st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=4)


@given(logits_of_rows, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_adds_a_label(
    tokenizer: Tokenizer, logits: list[list[float]], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    for few, many in zip(
        decode(logits, context_at(high, tokenizer)), decode(logits, context_at(low, tokenizer)), strict=True
    ):
        assert set(few["labels"]) <= set(many["labels"])
        assert few["scores"] == many["scores"]


@given(logits_of_rows)
def test_half_is_where_a_logit_changes_its_sign(tokenizer: Tokenizer, logits: list[list[float]]) -> None:
    for row, answer in zip(np.array(logits, np.float32), decode(logits, context_at(0.5, tokenizer)), strict=True):
        told = {name for name, logit in zip(NAMES, row, strict=True) if logit > 1e-6}
        assert told <= set(answer["labels"])
        assert all(0 <= value <= 1 for value in answer["scores"].values())
        assert not set(answer["labels"]) & {name for name, logit in zip(NAMES, row, strict=True) if logit < -1e-6}


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = write_checkpoint(tmp_path_factory.mktemp("m") / "m", "multi-label", tiny_config, tokenizer, NAMES)
    return bertfast.load(path, "torch")


texts = st.lists(st.lists(st.sampled_from(NOUNS + VERBS), max_size=20).map(" ".join), min_size=1, max_size=8)


@settings(deadline=None, max_examples=25)
@given(texts, st.randoms(use_true_random=False), st.integers(0, 20))
def test_neither_neighbours_nor_their_order_nor_padding_change_scores(
    model: Predictor, texts: list[str], rng: random.Random, more: int
) -> None:
    alone = [model.predict([text])[0] for text in texts]
    order = rng.sample(range(len(texts)), len(texts))
    together = model.predict([texts[place] for place in order])
    for place, answer in zip(order, together, strict=True):
        assert answer["scores"] == pytest.approx(alone[place]["scores"], rel=1e-4, abs=1e-6)
    (sequence,) = model.encode([{"text": texts[0]}])[0]
    outputs = model.backend.run(pad([sequence], 0, len(sequence) + more))
    padded = MULTI_LABEL.decode(outputs, [sequence], model.model.context)[0]
    assert padded["scores"] == pytest.approx(alone[0]["scores"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        (
            "a.jsonl",
            '{"text": "x", "labels": ["b", "a", "a"]}\n{"text": "y", "labels": []}\n'
            '{"text": "z", "labels": null}\n{"text": "z", "labels": ""}\n',
            {},
        ),
        ("a.csv", 'text,labels\nx,"b, a"\ny,\nz,\nz," "\n', {}),
        ("a.tsv", "text\ttags\nx\ta|b\ny\t\nz\t|\nz\t \n", {"separator": "|"}),
    ],
)
def test_labels_are_lists_or_have_something_between_them(
    tmp_path: Path, name: str, content: str, options: dict[str, str]
) -> None:
    (tmp_path / name).write_text(content)
    found = MULTI_LABEL.read(tmp_path / name, Columns(), MultiLabelSettings(**options), True)
    assert [example.gold for example in found] == [("a", "b"), (), (), ()]
    assert MULTI_LABEL.labels(found) == ("a", "b")


def test_what_is_wrong_with_labels_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "labels": ["a", " "]}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: 'labels' is \['a', ' '\], and a list without empty labels"):
        MULTI_LABEL.read(tmp_path / "a.jsonl", Columns(), MultiLabelSettings(), True)
    (tmp_path / "b.jsonl").write_text('{"text": "x", "labels": ["a"]}\n{"text": "y", "lables": ["b"]}\n')
    with pytest.raises(DataError, match=r"b.jsonl:2 has no 'labels'"):
        MULTI_LABEL.read(tmp_path / "b.jsonl", Columns(), MultiLabelSettings(), True)
    with pytest.raises(DataError, match="none of the 1 training rows carries a label"):
        MULTI_LABEL.labels([Example({"text": "x"}, ())])
    with pytest.raises(DataError, match=r"dev:3 has the label 'natur'.*Did you mean 'nature'"):
        MULTI_LABEL.refuse([Example({"text": "x"}, ("tool", "natur"), "dev:3")], NAMES)
    with pytest.raises(ConfigError, match="threshold = 1.5"):
        MultiLabelSettings.parse({"threshold": 1.5}, "settings")


GOLDS = [("nature",), ("building", "nature"), ("nature", "tool"), ("nature", "tool")]


def lesson(tokenizer: Tokenizer, wanted: object) -> tuple[dict[str, torch.Tensor], float]:
    """The targets of `GOLDS`, and by what their loss is divided."""
    own = MultiLabelSettings.parse({"class_weights": wanted}, "settings")
    examples = [Example({"text": "a"}, gold) for gold in GOLDS]
    features = MULTI_LABEL.features(examples, Context(tokenizer, NAMES, 32, own))
    targets = features.batch(np.arange(len(GOLDS)), 0).targets
    return {name: torch.from_numpy(array) for name, array in targets.items()}, MULTI_LABEL.counts(targets)["loss"]


@pytest.mark.parametrize(
    ("wanted", "weights"),
    [("none", [1, 1, 1]), ("balanced", [3 / 1, 1 / 4, 2 / 2]), ({"tool": 5}, [1, 1, 5])],
)
def test_a_label_of_a_row_counts_by_its_weight(tokenizer: Tokenizer, wanted: object, weights: list[float]) -> None:
    targets, count = lesson(tokenizer, wanted)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss = MULTI_LABEL.losses({"logits": logits}, targets, MultiLabelSettings())["loss"]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets["labels"], pos_weight=torch.tensor(weights), reduction="sum"
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    labels = targets["labels"].numpy()
    assert count == pytest.approx((1 - labels).sum() + (labels * weights).sum())
    right = MULTI_LABEL.correct({"logits": targets["labels"] - 0.5}, targets)["loss"]
    assert right.item() == pytest.approx(count)


def test_a_weight_of_no_label_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"class_weights names 'natur', and the labels are .*Did you mean 'nature'"):
        lesson(tokenizer, {"natur": 2})


def test_what_weighs_more_is_given_more_often(pretrained: Path, tmp_path: Path) -> None:
    files = (
        write_rows(tmp_path / "train.jsonl", kind_rows(60, 1)),
        write_rows(tmp_path / "dev.jsonl", kind_rows(40, 2)),
    )
    config = TINY_FINETUNE.model_copy(update={"max_steps": 24, "learning_rate": 3e-3, "threads": 1})
    scores = []
    for weight in (0.01, 100.0):
        out = tmp_path / f"m{weight}"
        own = {"class_weights": {"tool": weight}}
        finetune(open_checkpoint(pretrained), MULTI_LABEL, *files, out, config, task_settings=own)
        with bertfast.load(out, "torch") as model:
            scores.append(model.predict(["A letter waits."])[0]["scores"]["tool"])
    assert scores[1] > scores[0] + 0.2


def test_metrics_count_labels_and_rows() -> None:
    given_labels = [["building"], ["nature", "tool"], [], ["building"]]
    answers = [{"labels": labels, "scores": dict.fromkeys(NAMES, 0.0)} for labels in given_labels]
    found = score(answers, [("building",), ("nature",), (), ("nature",)])
    # Right: building once, nature once; wrong: building and tool once each; missed: nature once.
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["subset_accuracy"] == pytest.approx(0.5)
    assert found["majority"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given_label", "gold", "f1"), [([], (), 0), (["x"], ("x",), 1), (["x"], (), 0), ([], ("x",), 0)]
)
def test_an_only_label_is_one_too(given_label: list[str], gold: tuple[str, ...], f1: float) -> None:
    found = score([{"labels": given_label, "scores": {"x": 0.0}}] * 2, [gold] * 2)
    assert (found["micro_f1"], found["macro_f1"]) == (f1, f1)


def test_labels_are_learnt_and_known_to_transformers_both_ways(pretrained: Path, tmp_path: Path) -> None:
    files = (
        write_rows(tmp_path / "train.jsonl", kind_rows(160, 1)),
        write_rows(tmp_path / "dev.jsonl", kind_rows(40, 2)),
    )
    config = TINY_FINETUNE.model_copy(update={"epochs": 14, "learning_rate": 3e-3, "threads": 1})
    result = finetune(open_checkpoint(pretrained), MULTI_LABEL, *files, tmp_path / "m", config)
    assert result["dev_micro_f1"] > 0.8
    assert result["dev_subset_accuracy"] > 2 * result["dev_majority"]
    request = "A letter river engine waits."
    with bertfast.load(tmp_path / "m") as ours:
        answer = ours.predict([request])[0]
        (encoded,) = ours.encode([{"text": request}])[0]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert theirs.config.problem_type == "multi_label_classification"
    with torch.no_grad():
        scores = theirs(torch.tensor([encoded.input_ids])).logits.sigmoid()[0].tolist()
    assert list(answer["scores"].values()) == pytest.approx(scores, rel=1e-4)
    assert answer["labels"] == [name for name, value in zip(NAMES, scores, strict=True) if value >= 0.5]
    theirs.save_pretrained(tmp_path / "theirs")
    open_checkpoint(tmp_path / "m").tokenizer.save(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert (task_of(checkpoint).name, checkpoint.labels) == ("multi-label", NAMES)
    with bertfast.load(tmp_path / "theirs") as adopted:
        assert adopted.predict([request])[0]["scores"] == pytest.approx(answer["scores"], rel=1e-5)
