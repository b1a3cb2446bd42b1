"""Extractive question answering: where in a context the answer stands, as in SQuAD (Devlin et al. 2019, 4.2 and 4.3).

A context that is too long for one sequence is read in windows that overlap. Every window gives its best spans, and
the request's answer is the best of all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.tasks.probabilities import softmax
from bertfast.tasks.squad_metric import squad_scores
from bertfast.tasks.task import Answer, Context, Outputs, Targets, Task, no_labels, take_all
from bertfast.text.batch import Features
from bertfast.text.labelled import Columns, Example, Request
from bertfast.text.squad import Misaligned, Span, read_squad
from bertfast.text.tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn


class QaSettings(Config):
    """Question answering; the defaults are those of the reference code (`run_squad.py`)."""

    doc_stride: int = Field(
        128, gt=0, description="tokens by which each window moves on; half of a window's room at the most"
    )
    max_query_length: int = Field(64, gt=0, description="tokens that are kept of a question")
    max_answer_length: int = Field(30, gt=0, description="tokens of an answer, at the most")
    n_best_size: int = Field(20, gt=0, description="spans of a question that share the probability")
    return_n_best: bool = Field(False, description="whether an answer lists these spans under n_best")
    no_answer: bool | None = Field(
        None, description="whether a question may have no answer; as the training data are, when not given"
    )
    null_threshold: float = Field(
        0.0, description="there is no answer where null_score, in logits, is above this; lower finds fewer answers"
    )
    misaligned: Misaligned = Field(
        "repair", description="what becomes of an answer that does not stand at its answer_start: repair, drop, refuse"
    )


class Candidate(NamedTuple):
    """A span of a context: its score (start and end logit, summed) and its characters [start, end)."""

    score: float
    start: int
    end: int


class Candidates(NamedTuple):
    """What one window says: the score of there being no answer in it, and its best spans, the best first."""

    null: float
    spans: list[Candidate]


def check(request: Request) -> None:
    """`{"question": …, "context": …}`.

    Raises:
        DataError: one of the two is missing or is not text.
    """
    for name in ("question", "context"):
        if name not in request:
            raise DataError(
                f"a request needs 'question' and 'context'; this one has {', '.join(request) or 'nothing'}."
            )
        if not isinstance(request[name], str):
            raise DataError(f"'{name}' is {type(request[name]).__name__}, and a string is needed.")


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    assert isinstance(settings, QaSettings)
    return read_squad(path, columns, settings.misaligned, answers_needed=golds_needed)


def settle(settings: Config, examples: Sequence[Example]) -> Config:
    """Where it is not told, a question may have no answer if one of the examples has none."""
    assert isinstance(settings, QaSettings)
    if settings.no_answer is not None:
        return settings
    return settings.model_copy(update={"no_answer": any(not example.gold for example in examples)})


def encode(requests: Sequence[Request], context: Context) -> list[list[Encoded]]:
    """`[CLS] question [SEP] part of the context [SEP]`, as many as it takes; `offsets` are the context's.

    A question that is over its limit is cut (`truncated`). The limit leaves the context half of the window.
    """
    for request in requests:
        check(request)
    settings, tokenizer = context.settings, context.tokenizer
    assert isinstance(settings, QaSettings)
    limit = min(settings.max_query_length, (context.max_length - 3) // 2)
    questions = tokenizer.ids_of_texts([request["question"] for request in requests])
    contexts = list(dict.fromkeys(request["context"] for request in requests))
    passages = dict(zip(contexts, tokenizer.ids_and_offsets(contexts), strict=True))
    rows = []
    for request, ids in zip(requests, questions, strict=True):
        question = [tokenizer.cls_id, *ids[:limit], tokenizer.sep_id]
        room = context.max_length - len(question) - 1
        step = min(settings.doc_stride, max(1, room // 2))
        passage = passages[request["context"]]
        starts = range(0, max(0, len(passage[0]) - room) + step, step)
        rows.append([_window(question, passage, start, room, tokenizer, len(ids) > limit) for start in starts])
    return rows


def _window(
    question: list[int],
    passage: tuple[list[int], list[tuple[int, int]]],
    start: int,
    room: int,
    tokenizer: Tokenizer,
    truncated: bool,
) -> Encoded:
    ids, offsets = passage[0][start : start + room], passage[1][start : start + room]
    return Encoded(
        input_ids=[*question, *ids, tokenizer.sep_id],
        token_type_ids=[0] * len(question) + [1] * (len(ids) + 1),
        truncated=truncated,
        offsets=[(0, 0)] * len(question) + offsets + [(0, 0)],
    )


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Candidates]:
    """The best valid spans of each window: they end where they start or later, within the context, and are not over
    `max_answer_length` tokens long."""
    settings = context.settings
    assert isinstance(settings, QaSettings)
    starts, ends = (outputs[name].astype(np.float64) for name in ("start_logits", "end_logits"))
    return [
        Candidates(float(start[0] + end[0]), _best_spans(start, end, sequence, settings))
        for start, end, sequence in zip(starts, ends, encoded, strict=True)
    ]


def _best_spans(
    start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], window: Encoded, settings: QaSettings
) -> list[Candidate]:
    """All pairs of two tokens of the context are weighed, so that no valid span is missed for many invalid ones."""
    offsets = np.array(window.offsets, np.int64)
    tokens = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    if not len(tokens):
        return []
    longest = min(settings.max_answer_length, len(tokens))
    beyond = np.full(longest - 1, -np.inf)
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate([end[tokens], beyond]), longest)
    scores = (start[tokens, None] + ends).ravel()  # [tokens * longest]: a span's first token, and how many follow it
    rank = min(settings.n_best_size, len(scores))
    best = np.flatnonzero((scores >= np.partition(scores, -rank)[-rank]) & np.isfinite(scores))
    best = best[np.argsort(-scores[best], kind="stable")][: settings.n_best_size]
    first, following = np.divmod(best, longest)
    begins, stops = offsets[tokens[first], 0].tolist(), offsets[tokens[first + following], 1].tolist()
    return list(map(Candidate, scores[best].tolist(), begins, stops))


def merge(request: Request, pieces: Sequence[Candidates], context: Context) -> Answer:
    """`{"answer", "start", "end", "score"}`: the best span of all windows, characters [start, end) of the context.

    `score` is its share of the probability among the `n_best_size` best spans. Where there may be no answer, that
    takes its share too, and `null_score` says by how many logits it outweighs the best span: above `null_threshold`
    the answer is empty. A context without words has the empty answer; its `null_score` is None, for there is nothing
    to outweigh.
    """
    settings = context.settings
    assert isinstance(settings, QaSettings)
    spans = _distinct(pieces)[: settings.n_best_size]
    nothing = [Candidate(min(piece.null for piece in pieces), 0, 0)] if settings.no_answer else []
    ranked = sorted(spans + nothing, key=lambda candidate: -candidate.score)
    probabilities = softmax(np.array([candidate.score for candidate in ranked])).tolist()
    answers = [
        {"answer": request["context"][start:end], "start": start, "end": end, "score": probability}
        for (_, start, end), probability in zip(ranked, probabilities, strict=True)
    ]
    empty: Answer = {"answer": "", "start": 0, "end": 0, "score": 0.0}
    best = next((answer for answer in answers if answer["answer"]), empty)
    if nothing:
        null_score = nothing[0].score - spans[0].score if spans else None
        if null_score is None or null_score > settings.null_threshold:
            best = answers[ranked.index(nothing[0])]
        best = best | {"null_score": null_score}
    return best | {"n_best": answers} if settings.return_n_best else best


def _distinct(pieces: Sequence[Candidates]) -> list[Candidate]:
    """The spans of all windows, the best first; what several windows hold counts once, by its best score."""
    best: dict[tuple[int, int], Candidate] = {}
    for span in sorted((span for piece in pieces for span in piece.spans), key=lambda span: -span.score):
        best.setdefault((span.start, span.end), span)
    return list(best.values())


def score(answers: Sequence[Answer], golds: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Exact match and F1 by SQuAD's rule, as fractions."""
    return squad_scores([answer["answer"] for answer in answers], [[span.text for span in gold] for gold in golds])


def right(answer: Answer, gold: Sequence[Span]) -> bool:
    return score([answer], [gold])["exact_match"] == 1


def predictions(requests: Sequence[Request], answers: Sequence[Answer], taken: Container[str] = ()) -> dict[str, str]:
    """`{id: text}`, as SQuAD's evaluation reads it.

    Args:
        taken: the ids of questions before these.
    Raises:
        DataError: a request has no id of its own, or its answer is that of another task.
    """
    said: dict[str, str] = {}
    for request, answer in zip(requests, answers, strict=True):
        if "id" not in request or "answer" not in answer:
            raise DataError(
                f"SQuAD's predictions name each question by its 'id' and give its 'answer'. Here a request has "
                f"{', '.join(request)}, and its answer {', '.join(answer)}. Give each question its own id, to a model "
                "of the task qa."
            )
        name = request["id"]
        if not isinstance(name, str | int):
            raise DataError(f"the id {name!r} is neither a string nor an integer. Give each question such an id.")
        if str(name) in said or str(name) in taken:
            raise DataError(f"two questions have the id '{name}'. Give each question its own id.")
        said[str(name)] = answer["answer"]
    return said


def features(examples: Sequence[Example], context: Context) -> Features:
    """Every window, and the places of the answer's first and last token in it.

    [CLS] stands for the answer of a window that does not hold it all, and of an unanswerable question. The first
    answer of which the place is known is learnt. Questions that have none, and those about contexts without words,
    are left out with a warning that counts them.
    """
    sequences: list[tuple[Encoded, ...]] = []
    places: list[tuple[int, int]] = []
    left_out = 0
    for example, windows in zip(examples, encode([example.request for example in examples], context), strict=True):
        found = _places(example.gold, windows)
        left_out += not found
        sequences += [(replace(window, offsets=None),) for window in windows[: len(found)]]
        places += found
    if left_out:
        warnings.warn(
            f"{left_out} of {len(examples)} questions are left out of training: their context holds no words, their "
            "answer is longer than a window's share of it, or it is not known where it stands.",
            stacklevel=2,
        )
    if not sequences:
        raise DataError("no question has an answer with a known place, so there is nothing to train on.")
    targets = np.array(places, np.int64).T
    return Features(sequences, {"start_positions": targets[0], "end_positions": targets[1]})


def _places(gold: Sequence[Span], windows: Sequence[Encoded]) -> list[tuple[int, int]]:
    """The answer's first and last token in each window; empty where there is nothing to learn."""
    offsets = [np.array(window.offsets, np.int64) for window in windows]
    if not offsets[0].any():
        return []
    if not gold:
        return [(0, 0)] * len(windows)
    span = next((span for span in gold if span.start is not None), None)
    if span is None or span.start is None:
        return []
    stop = span.start + len(span.text)
    touched = [np.flatnonzero((rows[:, 0] < stop) & (rows[:, 1] > span.start)) for rows in offsets]
    if not any(map(len, touched)):
        return []
    extents = [
        (int(rows[tokens, 0].min(initial=stop)), int(rows[tokens, 1].max(initial=0)))
        for rows, tokens in zip(offsets, touched, strict=True)
    ]
    whole = (min(start for start, _ in extents), max(end for _, end in extents))
    if whole not in extents:  # it is longer than any window, which is no reason to teach that there is none
        return []
    return [
        (int(tokens[0]), int(tokens[-1])) if extent == whole else (0, 0)
        for tokens, extent in zip(touched, extents, strict=True)
    ]


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForQuestionAnswering

    model = BertForQuestionAnswering(config)
    initialize(model, config.initializer_range)
    return model


def forward(model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The logits with padding out of the softmax: how a batch is padded changes no loss. (The reference pads all
    sequences to one length and leaves the padding in.)"""
    from bertfast.model.encoder import MASKED_SCORE

    padding = inputs["attention_mask"] == 0
    return {name: logits.float().masked_fill(padding, MASKED_SCORE) for name, logits in model(**inputs).items()}


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """The mean of the cross-entropies of the first and the last token, summed over windows."""
    from torch.nn.functional import cross_entropy

    start = cross_entropy(outputs["start_logits"], targets["start_positions"], reduction="sum")
    end = cross_entropy(outputs["end_logits"], targets["end_positions"], reduction="sum")
    return {"loss": (start + end) / 2}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = outputs["start_logits"].argmax(-1) == targets["start_positions"]
    return {"loss": (start & (outputs["end_logits"].argmax(-1) == targets["end_positions"])).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": len(targets["start_positions"])}


QA = Task(
    name="qa",
    architecture="BertForQuestionAnswering",
    outputs=("start_logits", "end_logits"),
    per_token=("start_logits", "end_logits"),
    metric="f1",
    settings=QaSettings,
    read=read,
    labels=no_labels,
    settle=settle,
    refuse=take_all,
    check=check,
    encode=encode,
    decode=decode,
    merge=merge,
    decision=lambda answer: (answer["start"], answer["end"]),
    score=score,
    features=features,
    build=build,
    forward=forward,
    losses=losses,
    correct=correct,
    counts=counts,
    max_length=384,
    right=right,
)
