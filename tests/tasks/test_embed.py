from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bertfast
from bertfast.config import ModelConfig
from bertfast.errors import ConfigError, DataError
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context
from bertfast.tasks.embed import EMBED, EmbedSettings, neither_right_nor_wrong
from bertfast.text.labelled import Columns, Example
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import NOUNS, TINY_FINETUNE, VERBS, write_checkpoint, write_rows

PAIRS = [
    {"text": "The river.", "pair": "A bridge."},
    {"text": "The river.", "pair": "A garden."},
    {"text": "The winter.", "pair": "A bridge."},
]


def read(path: Path, rows: list[dict[str, Any]], golds_needed: bool = True) -> list[Example]:
    return EMBED.read(write_rows(path / "rows.jsonl", rows), Columns(), EmbedSettings(), golds_needed)


def context(tokenizer: Tokenizer, **settings: Any) -> Context:
    return Context(tokenizer, (), 32, EmbedSettings(**settings))


def test_what_a_file_holds_says_what_is_learnt_from_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    graded = read(tmp_path, [row | {"label": grade} for row, grade in zip(PAIRS, ("5", "0.5", "3"), strict=True)])
    assert [example.gold for example in graded] == [5.0, 0.5, 3.0]
    features = EMBED.features(graded, context(tokenizer))
    assert features.targets["grades"].tolist() == [5.0, 0.5, 3.0]
    plain = read(tmp_path, PAIRS)
    assert plain[0].gold == ("The river.", "A bridge.")
    assert EMBED.features(plain, context(tokenizer)).targets["text_ids"].tolist() == [[0, 1], [0, 2], [3, 1]]
    triplets = [{"anchor": "a river", "positive": "a bridge", "negative": "a letter"}] * 2
    found = read(tmp_path, triplets)
    assert found[0].request == {"text": "a river", "pair": "a bridge"}
    assert EMBED.features(found, context(tokenizer)).targets["text_ids"].tolist() == [[0, 1, 2]] * 2


def test_a_step_holds_all_its_texts_in_one_batch_firsts_before_seconds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    features = EMBED.features(read(tmp_path, PAIRS), context(tokenizer))
    assert features.whole_steps
    batch = features.batch(np.array([2, 0]), tokenizer.pad_id).batch
    texts = ["The winter.", "The river.", "A bridge.", "A bridge."]
    expected = [item.input_ids for item in tokenizer.encode([(text, None) for text in texts], 32)]
    assert [row[:length].tolist() for row, length in zip(batch.input_ids, batch.lengths, strict=True)] == expected


def test_told_to_find_pairs_it_takes_the_best_graded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row | {"label": grade} for row, grade in zip(PAIRS, (1, 0, 1), strict=True)]
    features = EMBED.features(read(tmp_path, rows), context(tokenizer, loss="in-batch"))
    assert features.targets["text_ids"].tolist() == [[0, 1], [2, 1]]


def test_data_that_the_loss_cannot_learn_from_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1 has no grade.*--label-column"):
        EMBED.features(read(tmp_path, PAIRS), context(tokenizer, loss="cosent"))
    with pytest.raises(DataError, match=r"all 3 training pairs have the grade 1,.*task.loss=in-batch"):
        EMBED.features(read(tmp_path, [row | {"label": 1} for row in PAIRS]), context(tokenizer))
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'label' is 'neutral', and a number is needed"):
        read(tmp_path, [PAIRS[0] | {"label": "1"}, PAIRS[1] | {"label": "neutral"}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'negative' is None"):
        read(tmp_path, [{"anchor": "a", "positive": "b", "negative": None}])
    with pytest.raises(DataError, match="single texts.*--pair-column"):
        read(tmp_path, [{"text": "a"}])
    for row in ({"text": "a"}, {"text": "a", "score": 1}):
        assert read(tmp_path, [row], golds_needed=False)[0].gold is None


def test_only_grades_are_taken_for_one_unless_they_are_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "pair": "b", "category": "sports"}, {"text": "c", "pair": "d", "category": "5"}]
    assert [example.gold for example in read(tmp_path, rows)] == [("a", "b"), ("c", "d")]
    with pytest.raises(DataError, match="'category' is 'sports', and a number is needed"):
        EMBED.read(tmp_path / "rows.jsonl", Columns(label="category"), EmbedSettings(), True)


def test_pairs_of_which_some_lack_their_grade_are_not_of_two_kinds(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [PAIRS[0] | {"score": 1}, PAIRS[1] | {"score": None}]
    with pytest.raises(DataError, match=r"rows.jsonl:2 has no 'score'"):
        read(tmp_path, rows)
    assert [example.gold for example in read(tmp_path, rows, golds_needed=False)] == [1.0, None]


def test_named_columns_come_before_triplets(tmp_path: Path) -> None:
    rows = [{"id": 1, "anchor": "a", "positive": "b", "negative": "c", "title": "d"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    (example,) = EMBED.read(file, Columns(text="title", pair="positive"), EmbedSettings(), True)
    assert (example.request, example.gold) == ({"text": "d", "pair": "b", "id": 1}, ("d", "b"))
    (example,) = EMBED.read(file, Columns(), EmbedSettings(), True)
    assert (example.request, example.gold) == ({"text": "a", "pair": "b", "id": 1}, ("a", "b", "c"))


def test_only_what_is_wrong_for_a_text_is_a_negative_of_it() -> None:
    ids = torch.tensor([[0, 1], [0, 2], [3, 1], [4, 0], [5, 6]])
    assert neither_right_nor_wrong(ids).int().tolist() == [
        [0, 1, 1, 1, 0],  # another answer of text 0, its own answer again, itself
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_a_hard_negative_is_one_for_every_row_unless_it_is_right_there() -> None:
    ids = torch.tensor([[0, 1, 2], [0, 3, 4], [5, 2, 1]])
    excluded = neither_right_nor_wrong(ids).int().tolist()
    assert excluded[0] == [0, 1, 0, 0, 0, 1]
    assert excluded[1] == [1, 0, 0, 0, 0, 0]
    assert excluded[2] == [0, 0, 0, 1, 0, 0]


def test_the_loss_finds_the_own_pair_among_the_step_s_texts() -> None:
    vectors = torch.eye(4)[[0, 1, 0, 1, 2, 3]]
    outputs = {"embedding": vectors}
    targets = {"text_ids": torch.tensor([[0, 1, 2], [3, 4, 5]])}
    loss = EMBED.losses(outputs, targets, EmbedSettings(scale=2.0))["loss"]
    each = np.log(1 + 3 * np.exp(-2.0))
    assert loss.item() == pytest.approx(2 * each, rel=1e-5)
    assert EMBED.counts({"text_ids": np.zeros((2, 3))}) == {"loss": 2}


def test_the_loss_of_grades_compares_the_pairs_of_a_step() -> None:
    outputs = {"embedding": torch.tensor([[1.0, 0], [1, 0], [0, 1], [0.6, 0.8]])}
    loss = EMBED.losses(outputs, {"grades": torch.tensor([2.0, 1.0])}, EmbedSettings(scale=5.0))["loss"]
    assert loss.item() == pytest.approx(np.log(1 + np.exp(5 * 0.6)), rel=1e-5)
    assert EMBED.counts({"grades": np.zeros(2)}) == {"loss": 1}


def test_answers_are_vectors_and_of_pairs_their_cosine_too(encoder: Path) -> None:
    with bertfast.load(encoder, "torch") as model:
        (text,) = model.predict(["The river."])
        (pair,) = model.predict([("The river.", "A bridge.")])
        (long,) = model.predict([{"text": "The river.", "pair": "The garden. " * 60}])
    assert list(text) == ["embedding"]
    assert text["embedding"].dtype == pair["pair_embedding"].dtype == np.float32
    assert text["embedding"] == pytest.approx(pair["embedding"], abs=1e-6)
    assert pair["score"] == pytest.approx(np.dot(pair["embedding"], pair["pair_embedding"]), abs=1e-6)
    assert long["truncated"]


def test_the_cosine_of_vectors_of_any_length_is_at_most_one(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = EmbedSettings(normalize=False)
    path = write_checkpoint(tmp_path / "raw", "embed", tiny_config, tokenizer, (), settings)
    with bertfast.load(path, "torch") as model:
        (same,) = model.predict([("The river.", "The river.")])
    assert np.linalg.norm(same["embedding"]) > 2
    assert same["score"] == pytest.approx(1, abs=1e-6)


def test_the_metrics_follow_the_golds() -> None:
    vectors = [{"embedding": [1.0, 0], "pair_embedding": [0.0, 1], "score": 0.0}]
    vectors += [{"embedding": [0.0, 1], "pair_embedding": [0.1, 1], "score": 0.9}]
    assert EMBED.score(vectors, [1.0, 4.0])["spearman"] == pytest.approx(1)
    assert EMBED.score(vectors, [("a", "x"), ("b", "y")])["recall@1"] == 0.0
    assert EMBED.score(vectors, [("a", "x"), ("b", "y", "hard")])["mrr"] == 0.5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_exported_graph_gives_the_same_vectors(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    settings = EmbedSettings(pooling=pooling, normalize=normalize)
    path = write_checkpoint(tmp_path / "ours", "embed", tiny_config, tokenizer, (), settings)
    checks = export(path, tmp_path / "onnx").checks
    assert checks
    assert all("rows of nothing but padding" in errors for errors in checks.values())
    texts = ["The river.", "", "The old garden near a window. " * 3]
    with bertfast.load(path, "torch") as source, bertfast.load(tmp_path / "onnx") as model:
        assert model.model.context.settings == settings
        for ours, theirs in zip(model.predict(texts), source.predict(texts), strict=True):
            assert ours["embedding"] == pytest.approx(theirs["embedding"], abs=2e-5)


QUICK = TINY_FINETUNE.model_copy(
    update={"learning_rate": 3e-3, "global_batch_size": 20, "checkpoint_every_steps": 100, "epochs": 10}
)


def pairs_that_share_a_noun(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"text": f"The {noun} {rng.choice(VERBS)} the road.", "pair": f"Near a {noun} he {rng.choice(VERBS)} it."}
        for noun in (NOUNS[n % len(NOUNS)] for n in range(count))
    ]


def test_pairs_find_each_other_once_it_has_learnt(pretrained: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", pairs_that_share_a_noun(120, 1))
    dev = write_rows(tmp_path / "dev.jsonl", pairs_that_share_a_noun(len(NOUNS), 2))
    start, untrained = open_checkpoint(pretrained), QUICK.model_copy(update={"max_steps": 1, "learning_rate": 1e-12})
    before = finetune(start, EMBED, train, dev, tmp_path / "before", untrained)
    after = finetune(start, EMBED, train, dev, tmp_path / "after", QUICK)
    assert before["dev_recall@1"] <= 0.4
    assert after["dev_recall@1"] >= 0.9
    with bertfast.load(tmp_path / "after") as model:
        texts = [f"Near a {noun} he paints it." for noun in ("river", "lantern")]
        near, far = model.predict([("The river follows the road.", text) for text in texts])
    assert near["score"] > far["score"] + 0.1


def graded_by_kind(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs that share no noun, graded by whether their nouns are of one kind."""
    rng, kinds = random.Random(seed), (("bridge", "window"), ("river", "mountain"), ("lantern", "engine"))
    rows = []
    for number in range(count):
        first, second = (0, 0) if number % 2 else rng.sample(range(3), 2)
        places = rng.sample(range(2), 2)
        shift = rng.randrange(3)
        nouns = [kinds[(kind + shift) % 3][place] for kind, place in zip((first, second), places, strict=True)]
        rows.append({"text": f"The {nouns[0]}.", "pair": f"A {nouns[1]}.", "label": 5 * (first == second)})
    return rows


def test_the_order_of_grades_is_learnt(pretrained: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", graded_by_kind(100, 1))
    dev = write_rows(tmp_path / "dev.jsonl", graded_by_kind(40, 2))
    result = finetune(open_checkpoint(pretrained), EMBED, train, dev, tmp_path / "m", QUICK)
    assert result["dev_spearman"] > 0.7
    with bertfast.load(tmp_path / "m") as model:
        near, far = model.predict([("The bridge.", "A window."), ("The bridge.", "A mountain.")])
    assert near["score"] > far["score"]


def test_fine_tuning_goes_on_with_the_pooling_of_its_start(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    start = write_checkpoint(tmp_path / "s", "embed", tiny_config, tokenizer, (), EmbedSettings(pooling="cls"))
    file = write_rows(tmp_path / "rows.jsonl", pairs_that_share_a_noun(16, 1))
    config = TINY_FINETUNE.model_copy(update={"max_steps": 1})
    finetune(open_checkpoint(start), EMBED, file, file, tmp_path / "kept", config)
    assert open_checkpoint(tmp_path / "kept").task_settings["pooling"] == "cls"
    told = {"pooling": "mean"}
    finetune(open_checkpoint(start), EMBED, file, file, tmp_path / "told", config, task_settings=told)
    assert open_checkpoint(tmp_path / "told").task_settings["pooling"] == "mean"
    pooling = json.loads((tmp_path / "told" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    with pytest.raises(ConfigError, match="'pool' is not a setting of EmbedSettings. Did you mean 'pooling'"):
        finetune(open_checkpoint(start), EMBED, file, file, tmp_path / "no", config, task_settings={"pool": "cls"})
