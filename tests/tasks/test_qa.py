from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

import bertfast
from bertfast.config import ModelConfig
from bertfast.errors import DataError
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.tasks import qa as answering
from bertfast.tasks.qa import Candidate, Candidates, QaSettings
from bertfast.text import tokenizer as tokenization
from bertfast.text.batch import pad
from bertfast.text.labelled import Example
from bertfast.text.squad import Span
from bertfast.text.tokenizer import SPECIAL_TOKENS, Encoded, Tokenizer
from bertfast.train.finetune import finetune
from tests.conftest import NOUNS, TINY_FINETUNE, VERBS, write_checkpoint

QA = get_task("qa")
WORDS = [*NOUNS[:6], "the", "of", "e", "\u6771", "\u4eac", "\U0001f600", "##s", "##er", "\u05e9\u05dc\u05d5\u05dd", "."]
TEXTS = st.text(
    st.one_of(
        st.sampled_from("the river of e\u0301a \n\u6771\u4eac\U0001f600\u05e9\u200f."), st.characters(codec="utf-8")
    ),
    max_size=60,
)


def small_tokenizer(lowercase: bool = True) -> Tokenizer:
    return tokenization.from_vocab([*SPECIAL_TOKENS, *WORDS], normalizers.BertNormalizer(lowercase=lowercase))


TOKENIZER = small_tokenizer()


def context_of(max_length: int = 16, tokenizer: Tokenizer = TOKENIZER, **changes: Any) -> Context:
    return Context(tokenizer, (), max_length, QaSettings(**changes))


def ask(question: str, context: str) -> dict[str, Any]:
    return {"question": question, "context": context}


def random_outputs(windows: list[Encoded], seed: int, padding: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Logits that depend on a window and its place in the list alone, with anything on the padding."""
    shape = (len(windows), max(map(len, windows)) + padding)
    outputs = {}
    for salt, name in enumerate(QA.outputs):
        outputs[name] = np.full(shape, 50.0, np.float32)
        for row, window in enumerate(windows):
            rng = np.random.default_rng([seed, salt, row])
            outputs[name][row, : len(window)] = rng.normal(size=len(window))
    return outputs


def answer_of(request: dict[str, str], context: Context, seed: int = 0, padding: int = 0) -> dict[str, Any]:
    (windows,) = QA.encode([request], context)
    return QA.merge(request, QA.decode(random_outputs(windows, seed, padding), windows, context), context)


def test_a_short_context_is_one_sequence() -> None:
    ((window,),) = QA.encode([ask("river of", "the garden")], context_of())
    assert TOKENIZER.tokens(window.input_ids) == ["[CLS]", "river", "of", "[SEP]", "the", "garden", "[SEP]"]
    assert window.token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert window.offsets == [(0, 0)] * 4 + [(0, 3), (4, 10), (0, 0)]
    assert not window.truncated


@given(words=st.integers(0, 120), asked=st.integers(0, 30), max_length=st.integers(8, 40), stride=st.integers(1, 40))
def test_windows_cover_every_token_and_overlap(words: int, asked: int, max_length: int, stride: int) -> None:
    rng = random.Random(words)
    text = " ".join(rng.choice(NOUNS[:6]) for _ in range(words))
    (windows,) = QA.encode([ask("of " * asked, text)], context_of(max_length, doc_stride=stride))
    offsets = TOKENIZER.ids_and_offsets([text])[0][1]
    held = [[offset for offset in window.offsets or [] if offset != (0, 0)] for window in windows]
    assert all(len(window) <= max_length for window in windows)
    assert list(dict.fromkeys(offset for part in held for offset in part)) == offsets
    steps = {second[0][0] - first[0][0] for first, second in pairwise(held)}
    assert all(set(first) & set(second) for first, second in pairwise(held))
    assert bool(steps) is (len(windows) > 1)
    if words:
        assert len(windows) == len({part[0] for part in held})
        assert not any(set(last) <= set(before) for before, last in pairwise(held))


def test_a_window_moves_on_by_the_stride() -> None:
    (windows,) = QA.encode([ask("of", "the garden " * 30)], context_of(24, doc_stride=7))
    first_tokens = [window.offsets[3] for window in windows if window.offsets]
    offsets = TOKENIZER.ids_and_offsets(["the garden " * 30])[0][1]
    assert [offsets.index(offset) for offset in first_tokens] == list(range(0, 7 * len(windows), 7))


def test_a_question_longer_than_its_limit_is_cut_and_said_to_be() -> None:
    long, short = ask("the garden " * 40, "river"), ask("the garden", "river")
    ((cut,), (whole,)) = QA.encode([long, short], context_of(160))
    assert (cut.truncated, whole.truncated) == (True, False)
    assert len(cut) == 1 + 64 + 1 + 1 + 1
    ((narrow,),) = QA.encode([long], context_of(16))
    assert sum(kind == 0 for kind in narrow.token_type_ids) == 2 + 6
    assert TOKENIZER.tokens(narrow.input_ids)[-2:] == ["river", "[SEP]"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"question": "a"}, "a request needs 'question' and 'context'; this one has question"),
        ({}, "this one has nothing"),
        ({"question": "a", "context": None}, "'context' is NoneType, and a string is needed"),
    ],
)
def test_a_malformed_request_is_named(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        QA.encode([request_], context_of())


def test_an_answer_is_no_longer_than_its_window() -> None:
    window = Encoded([9] * 4, [0, 1, 1, 1], offsets=[(0, 0), (0, 1), (1, 2), (0, 0)])
    found = [
        QA.decode(random_outputs([window], 1), [window], context_of(max_answer_length=longest))
        for longest in (2, 10**15)
    ]
    assert found[0] == found[1]


def every_span(start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], longest: int) -> list[Candidate]:
    """Slowly: all valid spans of a window whose tokens 3 to the last but one are the context's."""
    tokens = range(3, len(start) - 1)
    spans = [
        Candidate(float(start[a]) + float(end[b]), a, b + 1) for a in tokens for b in tokens if a <= b < a + longest
    ]
    return sorted(spans, key=lambda span: -span.score)


@given(length=st.integers(5, 30), longest=st.integers(1, 40), best=st.integers(1, 40), seed=st.integers(0, 9))
def test_the_best_valid_spans_are_found(length: int, longest: int, best: int, seed: int) -> None:
    offsets = [(0, 0)] * 3 + [(place, place + 1) for place in range(3, length - 1)] + [(0, 0)]
    window = Encoded([9] * length, [0] * 3 + [1] * (length - 3), offsets=offsets)
    outputs = random_outputs([window], seed, padding=3)
    outputs["start_logits"][0, :3] = outputs["end_logits"][0, :3] = 99  # the question and [CLS] are no answer
    (found,) = QA.decode(outputs, [window], context_of(max_answer_length=longest, n_best_size=best))
    expected = every_span(*(outputs[name][0, :length] for name in QA.outputs), longest)[:best]
    assert [span[1:] for span in found.spans] == [span[1:] for span in expected]
    assert [span.score for span in found.spans] == pytest.approx([span.score for span in expected])
    assert found.null == 198


@settings(max_examples=200)
@given(question=TEXTS, context=TEXTS, lowercase=st.booleans(), no_answer=st.booleans(), seed=st.integers(0, 99))
def test_places_always_reproduce_the_answer(
    question: str, context: str, lowercase: bool, no_answer: bool, seed: int
) -> None:
    setup = context_of(12, small_tokenizer(lowercase), no_answer=no_answer, max_answer_length=4, return_n_best=True)
    answer = answer_of(ask(question, context), setup, seed)
    for found in [answer, *answer["n_best"]]:
        assert context[found["start"] : found["end"]] == found["answer"]
        assert 0 <= found["score"] <= 1
    assert sum(found["score"] for found in answer["n_best"]) == pytest.approx(1 if answer["n_best"] else 0)
    assert bool(answer["n_best"]) is (no_answer or bool(setup.tokenizer.ids_of_texts([context])[0]))
    json.dumps(answer, allow_nan=False)


@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), padding=st.integers(0, 9))
def test_padding_changes_no_answer(texts: list[tuple[str, str]], padding: int) -> None:
    for question, text in texts:
        request = ask(question, text)
        assert answer_of(request, context_of()) == answer_of(request, context_of(), padding=padding)


def test_a_span_that_two_windows_hold_counts_once_by_its_best_score() -> None:
    request = ask("of", "the river of the garden")
    pieces = [
        Candidates(0.0, [Candidate(2.0, 4, 9), Candidate(1.0, 0, 9)]),
        Candidates(0.0, [Candidate(3.0, 4, 9), Candidate(2.5, 17, 23)]),
    ]
    answer = QA.merge(request, pieces, context_of(return_n_best=True))
    assert [found["answer"] for found in answer["n_best"]] == ["river", "garden", "the river"]
    assert answer["answer"] == "river"
    assert answer["score"] == pytest.approx(1 / (1 + np.exp(-0.5) + np.exp(-2.0)))
    (best,) = QA.merge(request, pieces, context_of(return_n_best=True, n_best_size=1))["n_best"]
    assert (best["answer"], best["score"]) == ("river", 1.0)


@pytest.mark.parametrize(("threshold", "text"), [(-3.0, ""), (-1.0, "river"), (0.0, "river"), (1.0, "river")])
def test_there_is_no_answer_where_that_outweighs_the_best_span_by_the_threshold(threshold: float, text: str) -> None:
    request = ask("of", "the river")
    pieces = [Candidates(5.0, [Candidate(3.0, 4, 9)]), Candidates(1.0, [])]  # the window that doubts the most counts
    answer = QA.merge(request, pieces, context_of(no_answer=True, null_threshold=threshold))
    share = 1 / (1 + np.exp(2.0))
    assert answer["answer"] == text
    assert answer["null_score"] == -2.0
    assert answer["score"] == pytest.approx(share if text == "" else 1 - share)
    assert "null_score" not in QA.merge(request, pieces, context_of())


@pytest.mark.parametrize("text", ["", "   \n\t ", "\u0000\u200b\ufffd"])
def test_a_context_without_words_has_the_empty_answer(text: str) -> None:
    nothing = {"answer": "", "start": 0, "end": 0}
    assert answer_of(ask("river", text), context_of()) == nothing | {"score": 0.0}
    assert answer_of(ask("river", text), context_of(no_answer=True)) == nothing | {"score": 1.0, "null_score": None}


def test_a_context_of_a_hundred_thousand_characters_is_answered() -> None:
    text = "the river of " * 7692
    answer = answer_of(ask("of", text), context_of(384))
    assert text[answer["start"] : answer["end"]] == answer["answer"] != ""


CONTEXTS = st.lists(
    st.sampled_from(["river", "garden", "caf\u00e9s", "\u6771\u4eac", "\U0001f600!", "e\u0301", "x.y"]),
    min_size=1,
    max_size=40,
)


@given(words=CONTEXTS, data=st.data(), max_length=st.integers(10, 30))
def test_targets_decode_to_the_gold_answer(words: list[str], data: st.DataObject, max_length: int) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 3, len(words) - 1)))
    text, gold = " ".join(words), " ".join(words[first : last + 1])
    start = len(" ".join([*words[:first], ""]))
    example = Example(ask("of", text), (Span(gold, start),))
    context = context_of(max_length)
    (windows,) = QA.encode([example.request], context)
    wanted = {offset for offset in _offsets(text) if start <= offset[0] < start + len(gold)}
    assume(any(wanted <= set(window.offsets or []) for window in windows))
    features = QA.features([example], context)
    assert [item[0].input_ids for item in features.sequences] == [window.input_ids for window in windows]
    starts, ends = features.targets["start_positions"], features.targets["end_positions"]
    for window, begin, end in zip(windows, starts, ends, strict=True):
        offsets = window.offsets or []
        if wanted <= set(offsets):
            assert text[offsets[begin][0] : offsets[end][1]] == gold
        else:
            assert (begin, end) == (0, 0)
    if len(wanted) <= (max_length - 4) // 2:
        assert features.targets["start_positions"].any()


def _offsets(text: str) -> list[tuple[int, int]]:
    return TOKENIZER.ids_and_offsets([text])[0][1]


def test_unanswerable_questions_point_at_cls_and_those_without_a_place_are_left_out() -> None:
    requests = [ask("of", text) for text in ("the river", "the river", "the river", "  ", " ")]
    golds = [(), (Span("bridge", None),), (Span("x", None), Span("river", 4)), (), (Span(" ", 0),)]
    examples = [Example(*pair) for pair in zip(requests, golds, strict=True)]
    with pytest.warns(UserWarning, match="3 of 5 questions are left out of training"):
        features = QA.features(examples, context_of())
    assert features.targets["start_positions"].tolist() == [0, 4]
    assert features.targets["end_positions"].tolist() == [0, 4]
    assert [window.offsets for (window,) in features.sequences] == [None, None]
    with (
        pytest.warns(UserWarning, match="1 of 1 questions"),
        pytest.raises(DataError, match="no question has an answer with a known place"),
    ):
        QA.features(examples[1:2], context_of())


def test_an_answer_longer_than_every_window_is_not_taught_as_none() -> None:
    text = "the garden " * 30
    examples = [
        Example(ask("of", text), (Span(text.strip(), 0),)),
        Example(ask("of", "the river"), (Span("river", 4),)),
    ]
    with pytest.warns(UserWarning, match="1 of 2 questions are left out of training"):
        features = QA.features(examples, context_of(24, doc_stride=7))
    assert features.targets["start_positions"].tolist() == [4]


def test_whether_there_may_be_no_answer_is_learnt_where_it_is_not_told() -> None:
    answered, unanswered = Example(ask("a", "b"), (Span("b", 0),)), Example(ask("a", "b"), ())
    for examples, learnt in (([answered], False), ([answered, unanswered], True)):
        assert QA.settle(QaSettings(), examples) == QaSettings(no_answer=learnt)
        assert QA.settle(QaSettings(no_answer=True), examples) == QaSettings(no_answer=True)


def test_padding_changes_no_loss_and_no_gradient(tiny_config: ModelConfig, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = QA.build(tiny_config, 0, QaSettings()).eval()
    rows = [Encoded([2, 9, 3, 11, 12, 13, 3], [0, 0, 0, 1, 1, 1, 1]), Encoded([2, 9, 3, 11, 3], [0, 0, 0, 1, 1])]
    targets = {"start_positions": torch.tensor([4, 0]), "end_positions": torch.tensor([5, 0])}
    found = []
    for length in (7, 40):
        inputs = {name: torch.from_numpy(array) for name, array in pad(rows, 0, length).arrays.items()}
        model.zero_grad()
        loss = QA.losses(QA.forward(model, inputs, targets), targets, QaSettings())["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.item(), model.qa_outputs.weight.grad.clone()))  # type: ignore[union-attr, operator]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_only_a_window_with_both_ends_right_counts_as_right() -> None:
    outputs = {"start_logits": torch.eye(4)[[1, 1, 2]], "end_logits": torch.eye(4)[[2, 3, 2]]}
    targets = {"start_positions": torch.tensor([1, 1, 1]), "end_positions": torch.tensor([2, 2, 2])}
    assert QA.correct(outputs, targets)["loss"].item() == 1


def questions(count: int, seed: int, unanswerable: bool = False) -> dict[str, Any]:
    """SQuAD's layout around questions that can be learnt: of the three nouns of a context, which is a tool?"""
    rng = random.Random(seed)
    paragraphs = []
    for number in range(count):
        missing = unanswerable and number % 2 == 1
        tool = rng.choice(["garden", "winter"] if missing else ["lantern", "engine"])
        nouns = rng.sample([tool, rng.choice(["bridge", "window"]), rng.choice(["river", "mountain"])], 3)
        text = f"The {nouns[0]} {rng.choice(VERBS)} the {nouns[1]} near a {nouns[2]}."
        answers = [] if missing else [{"text": tool, "answer_start": text.find(tool)}]
        qas = [{"id": f"q{number}", "question": "Which tool?", "answers": answers, "is_impossible": missing}]
        paragraphs.append({"context": text, "qas": qas})
    return {"data": [{"paragraphs": paragraphs}]}


def write_questions(path: Path, *arguments: Any) -> Path:
    path.write_text(json.dumps(questions(*arguments)))
    return path


@pytest.fixture(scope="session")
def finder(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("finder") / "finder", "qa", tiny_config, tokenizer, ())


def test_batches_and_their_order_change_no_answer(finder: Path, documents: list[str]) -> None:
    requests = [
        ask("What crosses the river?", text[:length])
        for text, length in zip(documents[:12], range(0, 600, 50), strict=True)
    ]
    with bertfast.load(finder) as model:
        together = model.predict(requests)
        turned = model.predict(requests[::-1])[::-1]
        alone = [model.predict([request])[0] for request in requests]
    for request, *answers in zip(requests, together, turned, alone, strict=True):
        assert len({(answer["answer"], answer["start"], answer["end"]) for answer in answers}) == 1
        assert [answer["score"] for answer in answers] == pytest.approx([answers[0]["score"]] * 3, rel=1e-4)
        assert request["context"][answers[0]["start"] : answers[0]["end"]] == answers[0]["answer"]


def test_a_long_text_and_a_long_question_are_answered(finder: Path) -> None:
    requests = [ask("", ""), ask("what " * 100, "The river waits. " * 300)]
    with bertfast.load(finder) as model:
        empty, long = model.predict(requests)
    assert empty == {"answer": "", "start": 0, "end": 0, "score": 0.0}
    assert long["truncated"] is True
    assert long["answer"]


def test_a_model_that_learnt_answers_better_than_chance_wherever_it_runs(pretrained: Path, tmp_path: Path) -> None:
    train = write_questions(tmp_path / "train.json", 120, 1)
    dev = write_questions(tmp_path / "dev.json", 40, 2)
    config = TINY_FINETUNE.model_copy(update={"max_length": 48, "epochs": 3, "learning_rate": 1e-2, "threads": 1})
    result = finetune(open_checkpoint(pretrained), QA, train, dev, tmp_path / "m", config)
    assert result["dev_exact_match"] > 0.8  # one of three nouns
    assert result["dev_f1"] >= result["dev_exact_match"]
    export(tmp_path / "m", tmp_path / "onnx")
    requests = [example.request for example in QA.read(dev, answering.Columns(), QaSettings(), True)]
    found = []
    for artefact in ("m", "onnx"):
        with bertfast.load(tmp_path / artefact) as model:
            assert model.model.context.settings == QaSettings(no_answer=False)
            found.append(model.predict(requests))
    assert [answer["answer"] for answer in found[0]] == [answer["answer"] for answer in found[1]]
    said = answering.predictions(requests, found[0])
    assert set(said) == {f"q{number}" for number in range(40)}


def test_a_model_that_saw_unanswerable_questions_may_answer_nothing(pretrained: Path, tmp_path: Path) -> None:
    train = write_questions(tmp_path / "train.json", 60, 1, True)
    config = TINY_FINETUNE.model_copy(update={"max_length": 48, "max_steps": 2})
    result = finetune(open_checkpoint(pretrained), QA, train, train, tmp_path / "m", config)
    assert {"dev_HasAns_f1", "dev_NoAns_f1"} <= set(result)
    with bertfast.load(tmp_path / "m") as model:
        model.model = replace(
            model.model, context=replace(model.model.context, settings=QaSettings(no_answer=True, null_threshold=-1e9))
        )
        (answer,) = model.predict([ask("carries what?", "The river carries the bridge.")])
    assert answer["answer"] == ""
    assert answer["null_score"] > -1e9


def test_predictions_are_by_id_and_of_this_task_alone() -> None:
    requests = [ask("a", "b") | {"id": "q1"}, ask("a", "b") | {"id": "q2"}]
    assert answering.predictions(requests, [{"answer": "b"}, {"answer": ""}]) == {"q1": "b", "q2": ""}
    with pytest.raises(DataError, match="Here a request has question, context"):
        answering.predictions([ask("a", "b")], [{"answer": "b"}])
    with pytest.raises(DataError, match="and its answer label"):
        answering.predictions(requests[:1], [{"label": "b"}])


@pytest.mark.parametrize(("name", "message"), [([1], r"the id \[1\] is neither"), (2, "two questions have the id '2'")])
def test_each_question_of_predictions_has_its_own_id(name: object, message: str) -> None:
    requests = [ask("a", "b") | {"id": name}]
    with pytest.raises(DataError, match=message):
        answering.predictions(requests, [{"answer": "b"}], {"2": "a"})
    with pytest.raises(DataError, match=message):
        answering.predictions([ask("a", "b") | {"id": "2"}, *requests], [{"answer": "b"}] * 2)
