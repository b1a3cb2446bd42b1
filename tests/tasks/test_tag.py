from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bertfast
from bertfast.backends import open_served
from bertfast.config import ModelConfig
from bertfast.errors import DataError
from bertfast.export.export import export
from bertfast.model.padding import round_up
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.tasks.tag import TAG, GoldWord
from bertfast.tasks.task import NoSettings, plain_forward
from bertfast.text.batch import IGNORE_INDEX
from bertfast.text.labelled import Columns, Example
from bertfast.text.tags import Span, spans_of, tags_of
from bertfast.text.tokenizer import Tokenizer
from bertfast.text.words import join_words
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, VERBS, write_checkpoint, write_rows

LABELS = ("O", "B-a", "I-a", "B-b", "I-b")
SHORTEST = 8  # the least max_length: windows of six pieces


def context(tokenizer: Tokenizer, max_length: int = 32) -> Context:
    return Context(tokenizer, LABELS, max_length, NoSettings())


def example(tokens: Sequence[str], tags: Sequence[str]) -> Example:
    words = zip(join_words(list(tokens))[1], tags, strict=True)
    return Example({"tokens": list(tokens)}, [GoldWord(start, end, tag) for (start, end), tag in words], "test:1")


def answer_from_targets(item: Example, rules: Context) -> dict[str, Any]:
    """The answer of a model that gives its whole weight to what it was to learn."""
    (windows,) = TAG.encode([item.request], rules)
    learnt = [window for window in windows if window.word_starts]
    targets = TAG.features([item], rules).token_targets["labels"]
    pieces = []
    for window, target in zip(learnt, targets, strict=True):
        logits = np.full((1, len(window) + 3, len(LABELS)), -9.0, np.float32)  # with padding behind
        for place, label in enumerate(target):
            if label != IGNORE_INDEX:
                logits[0, place, label] = 9.0
        pieces += TAG.decode({"logits": logits}, [window], rules)
    return TAG.merge(item.request, pieces, rules)


ODD_WORDS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(
        [
            "\u200b",
            "\u200d\u200d",
            "\x00",
            "\x7f",
            "\u0301",
            "\ufe0f",
            "👩‍👩‍👧",
            "👍🏽",
            "中文字",
            "שלום",
            "مرحبا",
            "e\u0301a",
            "[SEP]",
            " ",
        ]
    ),
)


@st.composite
def tagged_sentences(draw: st.DrawFn) -> Example:
    tokens = draw(st.lists(ODD_WORDS, max_size=30))
    tags = draw(st.lists(st.sampled_from(LABELS), min_size=len(tokens), max_size=len(tokens)))
    return example(tokens, tags_of(spans_of(tags), len(tags)))


@settings(deadline=None)
@given(tagged_sentences(), st.integers(SHORTEST, 40))
def test_spans_of_any_words_survive_the_way_through_tokens(
    tokenizer: Tokenizer, item: Example, max_length: int
) -> None:
    answer = answer_from_targets(item, context(tokenizer, max_length))
    spans = spans_of([word.tag for word in item.gold])
    expected = [(item.gold[span.start].start, item.gold[span.end - 1].end, span.label) for span in spans]
    assert [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]] == expected
    text = " ".join(item.request["tokens"])
    assert all(entity["text"] == text[entity["start"] : entity["end"]] for entity in answer["entities"])
    if spans:
        assert TAG.score([answer], [item.gold]) == {"precision": 1, "recall": 1, "f1": 1, "token_accuracy": 1}


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(SHORTEST, 20))
def test_every_entity_of_any_text_is_what_its_offsets_say(tokenizer: Tokenizer, text: str, max_length: int) -> None:
    rules = context(tokenizer, max_length)
    (windows,) = TAG.encode([{"text": text}], rules)
    logits = np.random.default_rng(len(text)).normal(size=(len(windows), max_length, len(LABELS))).astype(np.float32)
    answer = TAG.merge({"text": text}, TAG.decode({"logits": logits}, windows, rules), rules)
    ends = 0
    for entity in answer["entities"]:
        assert entity["text"] == text[entity["start"] : entity["end"]] != ""
        assert entity["start"] >= ends
        ends = entity["end"]


@pytest.mark.parametrize("max_length", [SHORTEST, 9, 10, 17, 32, 500])
def test_every_word_is_read_once_where_it_has_most_context(tokenizer: Tokenizer, max_length: int) -> None:
    rng = random.Random(max_length)
    tokens = [rng.choice([*VERBS, "a", "zzzz", "river" * 40]) for _ in range(300)]
    (windows,) = TAG.encode([{"tokens": tokens}], context(tokenizer, max_length))
    assert all(len(window) <= max_length for window in windows)
    assert all(
        window.input_ids[0] == tokenizer.cls_id and window.input_ids[-1] == tokenizer.sep_id for window in windows
    )
    (ids,) = tokenizer.ids_of_words([tokens])
    read = [window.input_ids[place] for window in windows for place in window.word_starts]
    assert read == [word[0] for word in ids]
    least = (max_length - 2) // 4 // 2
    for window in windows[1:]:
        assert all(place - 1 >= least for place in window.word_starts)
    for window in windows[:-1]:
        assert all(len(window) - 2 - place >= least - 1 for place in window.word_starts)


def test_a_text_of_a_hundred_thousand_characters_loses_no_word(tokenizer: Tokenizer) -> None:
    text = "The river, crosses. " * 5000
    (windows,) = TAG.encode([{"text": text}], context(tokenizer, 64))
    assert sum(len(window.word_starts) for window in windows) == 5 * 5000
    assert not any(window.truncated for window in windows)


@pytest.mark.parametrize("request_", [{"text": ""}, {"text": " \u200b "}, {"tokens": []}])
def test_where_there_is_no_word_there_is_no_entity(tokenizer: Tokenizer, request_: dict[str, Any]) -> None:
    rules = context(tokenizer)
    (windows,) = TAG.encode([request_], rules)
    assert [window.input_ids for window in windows] == [[tokenizer.cls_id, tokenizer.sep_id]]
    pieces = TAG.decode({"logits": np.zeros((1, 2, len(LABELS)), np.float32)}, windows, rules)
    assert TAG.merge(request_, pieces, rules) == {"entities": []}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "either 'text' or 'tokens'; this one has nothing"),
        ({"text": "a", "tokens": ["a"]}, "this one has text, tokens"),
        ({"text": "a", "pair": "b"}, "this one has text, pair"),
        ({"text": 3}, "'text' is int"),
        ({"tokens": "a b"}, "'tokens' is a b, and a list of words is needed"),
        ({"tokens": ["a", ""]}, "none of them empty"),
        ({"tokens": ["a", None]}, "a list of words is needed"),
    ],
)
def test_bad_requests_are_named(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TAG.check(request_)


def test_an_answer_s_score_is_the_mean_of_its_words(tokenizer: Tokenizer) -> None:
    rules = context(tokenizer)
    request = {"tokens": ["a", "a", "a"]}
    (windows,) = TAG.encode([request], rules)
    probabilities = np.full((1, 5, len(LABELS)), 0.1)
    for place, (label, value) in enumerate([(1, 0.6), (2, 0.8), (0, 0.9)], 1):
        probabilities[0, place] = (1 - value) / (len(LABELS) - 1)
        probabilities[0, place, label] = value
    pieces = TAG.decode({"logits": np.log(probabilities).astype(np.float32)}, windows, rules)
    (entity,) = TAG.merge(request, pieces, rules)["entities"]
    assert entity == {"start": 0, "end": 3, "label": "a", "text": "a a", "score": pytest.approx(0.7)}


GOLD = example(["Ann", "Lee", "met", "Bo", "Cy", "."], ["B-a", "I-a", "O", "B-b", "B-b", "O"]).gold


def entities(*spans: tuple[int, int, str]) -> dict[str, Any]:
    return {"entities": [{"start": start, "end": end, "label": label} for start, end, label in spans]}


@pytest.mark.parametrize(
    ("answer", "precision", "recall", "accuracy"),
    [
        (entities((0, 7, "a"), (12, 14, "b"), (15, 17, "b")), 1, 1, 1),
        (entities((0, 7, "b"), (12, 14, "b"), (15, 17, "b")), 2 / 3, 2 / 3, 4 / 6),  # another type
        (entities((0, 3, "a"), (12, 14, "b"), (15, 17, "b")), 2 / 3, 2 / 3, 5 / 6),  # a bound too early
        (entities((0, 7, "a"), (12, 17, "b")), 1 / 2, 1 / 3, 5 / 6),  # two neighbours as one
        (entities((0, 3, "a"), (4, 7, "a")), 0, 0, 3 / 6),  # one as two neighbours
        (entities((0, 7, "a")), 1, 1 / 3, 4 / 6),
        (entities((0, 7, "a"), (8, 11, "a"), (18, 19, "b")), 1 / 3, 1 / 3, 2 / 6),
        (entities(), 0, 0, 2 / 6),
    ],
)
def test_whole_entities_are_judged(answer: dict[str, Any], precision: float, recall: float, accuracy: float) -> None:
    f1 = 2 * precision * recall / (precision + recall) if precision else 0
    expected = {"precision": precision, "recall": recall, "f1": f1, "token_accuracy": accuracy}
    assert TAG.score([answer], [GOLD]) == pytest.approx(expected)


def test_entities_are_counted_over_all_sentences_and_none_reaches_into_the_next() -> None:
    one = example(["a"], ["B-a"]).gold
    scores = TAG.score([entities((0, 1, "a")), entities(), entities((0, 1, "a"))], [one, one, one])
    assert scores == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "token_accuracy": 2 / 3})


def test_features_label_first_pieces_only(tokenizer: Tokenizer) -> None:
    item = example(["river", "zqz", "a"], ["B-a", "I-a", "O"])
    features = TAG.features([item, item], context(tokenizer))
    (ids,) = tokenizer.ids_of_words([item.request["tokens"]])
    expected = [IGNORE_INDEX]
    for word, label in zip(ids, [1, 2, 0], strict=True):
        expected += [label] + [IGNORE_INDEX] * (len(word) - 1)
    batch = features.batch(np.array([0, 1]), tokenizer.pad_id)
    assert batch.targets["labels"].tolist() == [[*expected, IGNORE_INDEX]] * 2
    assert TAG.counts(batch.targets) == {"loss": 6}


def test_the_loss_is_summed_over_labelled_words() -> None:
    targets = {"labels": torch.tensor([[IGNORE_INDEX, 1, 0], [IGNORE_INDEX, 1, IGNORE_INDEX]])}
    outputs = {"logits": torch.zeros(2, 3, 4)}
    assert TAG.losses(outputs, targets, NoSettings())["loss"].item() == pytest.approx(3 * np.log(4))
    assert TAG.correct(outputs, targets)["loss"].item() == 1


def test_what_follows_the_last_attention_is_computed_for_labelled_tokens_and_teaches_the_same(
    tiny_config: ModelConfig,
) -> None:
    still = tiny_config.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    model = TAG.build(still, len(LABELS), NoSettings()).train()
    inputs = {
        "input_ids": torch.randint(5, still.vocab_size, (3, 9)),
        "attention_mask": torch.ones(3, 9, dtype=torch.int64),
        "token_type_ids": torch.zeros(3, 9, dtype=torch.int64),
    }
    labels = torch.randint(0, len(LABELS), (3, 9))
    labels[:, ::2] = IGNORE_INDEX
    rows: list[int] = []
    model.get_submodule("bert.encoder").register_forward_hook(lambda _, given, hidden: rows.append(len(hidden)))
    found = []
    for forward in (plain_forward, TAG.forward):
        model.zero_grad()
        loss = TAG.losses(forward(model, inputs, {"labels": labels}), {"labels": labels}, NoSettings())["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss, [parameter.grad for parameter in model.parameters()]))
    (expected, expected_gradients), (loss, gradients) = found
    assert rows == [round_up(27), round_up(12)]
    assert torch.allclose(loss, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_labels_are_o_and_both_prefixes_of_each_type() -> None:
    items = [example(["a", "b"], ["B-work", "O"]), example(["a"], ["B-creative-work"])]
    assert TAG.labels(items) == ("O", "B-creative-work", "I-creative-work", "B-work", "I-work")
    with pytest.raises(DataError, match="none of the 1 training sentences has a tagged word"):
        TAG.labels([example(["a"], ["O"])])


def test_sentences_without_tags_are_for_asking_only(tmp_path: Path) -> None:
    file = tmp_path / "words.conll"
    file.write_text("Ann\nleft\n")
    assert TAG.read(file, Columns(), NoSettings(), False) == [Example({"tokens": ["Ann", "left"]}, None, f"{file}:1")]
    with pytest.raises(DataError, match=r"words.conll:1 has words without tags"):
        TAG.read(file, Columns(), NoSettings(), True)


def test_a_row_without_words_is_answered_where_no_tags_are_needed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"id": 1, "tokens": [], "tags": []}, {"id": 2, "tokens": ["Ann"], "tags": ["B-a"]}]
    examples = TAG.read(write_rows(tmp_path / "rows.jsonl", rows), Columns(), NoSettings(), False)
    assert [example.request for example in examples] == [{"tokens": [], "id": 1}, {"tokens": ["Ann"], "id": 2}]
    (window,) = TAG.encode([examples[0].request], context(tokenizer))[0]
    outputs = {"logits": np.zeros((1, len(window), 3), np.float32)}
    pieces = TAG.decode(outputs, [window], context(tokenizer))
    assert TAG.merge(examples[0].request, pieces, context(tokenizer)) == {"entities": []}
    answers: list[dict[str, Any]] = [{"entities": []}, {"entities": [{"start": 0, "end": 3, "label": "a"}]}]
    assert TAG.score(answers, [example.gold for example in examples])["f1"] == 1


@pytest.fixture(scope="module")
def tagger(pretrained: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = open_checkpoint(pretrained).config
    return write_checkpoint(tmp_path_factory.mktemp("tagger") / "tagger", "tag", config, tokenizer, LABELS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*VERBS, "river", "👍", "中"]), max_size=80), min_size=1, max_size=6))
def test_neither_order_nor_padding_changes_a_prediction(tagger: Path, sentences: list[list[str]]) -> None:
    requests = [{"tokens": tokens} for tokens in sentences]
    with bertfast.load(tagger) as model:
        together, turned = model.predict(requests), model.predict(requests[::-1])[::-1]
        alone = [model.predict([request])[0] for request in requests]
    assert [TAG.decision(answer) for answer in together] == [TAG.decision(answer) for answer in turned]
    assert [TAG.decision(answer) for answer in together] == [TAG.decision(answer) for answer in alone]


PEOPLE, PLACES = ["Ann", "Bo", "Cy Lee"], ["Rome", "New York", "Oslo"]


def tagged_file(path: Path, count: int, seed: int) -> Path:
    """Sentences whose tags follow from the words around them."""
    rng = random.Random(seed)
    blocks = []
    for _ in range(count):
        person, place = rng.choice(PEOPLE).split(), rng.choice(PLACES).split()
        tokens = [*person, rng.choice(VERBS), "the", "bridge", "in", *place, "."]
        spans = [Span(0, len(person), "person"), Span(len(tokens) - 1 - len(place), len(tokens) - 1, "place")]
        blocks.append(
            "\n".join(f"{token}\t{tag}" for token, tag in zip(tokens, tags_of(spans, len(tokens)), strict=True))
        )
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def test_a_tagger_learns_is_exported_and_answers_with_offsets(pretrained: Path, tmp_path: Path) -> None:
    files = tagged_file(tmp_path / "train.conll", 80, 1), tagged_file(tmp_path / "dev.conll", 30, 2)
    config = TINY_FINETUNE.model_copy(update={"epochs": 6, "learning_rate": 5e-3})
    result = finetune(open_checkpoint(pretrained), get_task("tag"), *files, tmp_path / "m", config)
    assert result["dev_f1"] > 0.9
    export(tmp_path / "m", tmp_path / "onnx")
    text = "Cy Lee repairs the bridge in New York."
    with bertfast.load(tmp_path / "m") as model, bertfast.load(tmp_path / "onnx") as exported:
        assert model.model.context.labels == exported.model.context.labels
        answers = [model.predict([text])[0], exported.predict([text])[0]]
    for answer in answers:
        found = [(entity["text"], entity["label"]) for entity in answer["entities"]]
        assert found == [("Cy Lee", "person"), ("New York", "place")]
        assert all(0.5 < entity["score"] <= 1 for entity in answer["entities"])
    named = json.loads((tmp_path / "m" / "config.json").read_text())["id2label"]
    assert list(named.values()) == ["O", "B-person", "I-person", "B-place", "I-place"]
    assert open_served(tmp_path / "onnx").context.labels == tuple(named.values())
