"""Tagging: words to spans of a type, such as named entities. A word's first token answers for it (Devlin et al. 2019,
5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.tasks.probabilities import softmax
from bertfast.tasks.task import (
    Answer,
    Context,
    NoSettings,
    Outputs,
    Targets,
    Task,
    as_given,
    take_all,
)
from bertfast.text.batch import IGNORE_INDEX, Features
from bertfast.text.conll import Sentence
from bertfast.text.labelled import Columns, Example, Request
from bertfast.text.tagged import read_tagged
from bertfast.text.tags import OUTSIDE, Span, spans_of, tags_of
from bertfast.text.tokenizer import Encoded, Tokenizer
from bertfast.text.words import Offsets, join_words, split_words

if TYPE_CHECKING:
    from torch import Tensor, nn

Tagged = tuple[str, float]  # what is predicted of a word: its tag, and the probability of that tag


class GoldWord(NamedTuple):
    """A word of a sentence, where it stands in the text, and its IOB2 tag."""

    start: int
    end: int
    tag: str


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    """The sentences of a CoNLL file, or of JSON lines or Parquet with `tokens` and `tags`."""
    sentences = read_tagged(path, columns, tags_needed=golds_needed)
    return [_example(sentence, golds_needed) for sentence in sentences]


def _example(sentence: Sentence, golds_needed: bool) -> Example:
    request = {"tokens": sentence.tokens, **sentence.id}
    if sentence.tags is None:
        if golds_needed:
            raise DataError(f"{sentence.where} has words without tags. Give each word its tag in another column.")
        return Example(request, None, sentence.where)
    _, offsets = join_words(sentence.tokens)
    words = zip(offsets, sentence.tags, strict=True)
    gold = [GoldWord(start, end, tag) for (start, end), tag in words]
    return Example(request, gold, sentence.where)


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """`O`, then B- and I- of each type that the examples have, in alphabetical order.

    Raises:
        DataError: no word has a tag but O.
    """
    types = sorted({word.tag[2:] for example in examples for word in example.gold if word.tag != OUTSIDE})
    if not types:
        raise DataError(
            f"none of the {len(examples)} training sentences has a tagged word (all are {OUTSIDE}), so there is "
            "nothing to learn. Check the column of the tags (--label-column)."
        )
    return (OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI"))


def check(request: Request) -> tuple[str, list[Offsets]]:
    """The text of `{"text": …}` or of `{"tokens": […]}`, which are joined with one space, and where its words are.

    Raises:
        DataError: both or neither are there, or they are no text.
    """
    if ("text" in request) == ("tokens" in request) or "pair" in request:
        raise DataError(f"a request needs either 'text' or 'tokens'; this one has {', '.join(request) or 'nothing'}.")
    if "text" in request:
        text = request["text"]
        if not isinstance(text, str):
            raise DataError(f"'text' is {type(text).__name__}, and a string is needed.")
        return text, split_words(text)
    tokens = request["tokens"]
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) and token for token in tokens):
        raise DataError(f"'tokens' is {str(tokens)[:60]}, and a list of words is needed, none of them empty.")
    return join_words(tokens)


def encode(requests: Sequence[Request], context: Context) -> list[list[Encoded]]:
    """The words of each request in as many windows as they need; every word is read in one of them."""
    texts = [check(request) for request in requests]
    sentences = [[text[start:end] for start, end in words] for text, words in texts]
    room = context.max_length - 2
    return [_windows(words, room, context.tokenizer) for words in context.tokenizer.ids_of_words(sentences)]


def _windows(words: Sequence[Sequence[int]], room: int, tokenizer: Tokenizer) -> list[Encoded]:
    """The pieces of words in windows of up to `room` pieces. Two neighbours share a quarter of them; the words that
    begin in the first half of what they share are read in the one before, and the others in the one behind."""
    ids = [piece for word in words for piece in word]
    word_starts = np.cumsum([0, *map(len, words)])[:-1]
    shared = room // 4
    starts = range(0, max(1, len(ids) - shared), room - shared)
    borders = [0, *(start + shared // 2 for start in starts[1:]), len(ids)]
    windows = []
    for start, (first, end) in zip(starts, pairwise(borders), strict=True):
        window = [tokenizer.cls_id, *ids[start : start + room], tokenizer.sep_id]
        read = word_starts[np.searchsorted(word_starts, first) : np.searchsorted(word_starts, end)]
        windows.append(Encoded(window, [0] * len(window), word_starts=(read - start + 1).tolist()))
    return windows


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[list[Tagged]]:
    """The likeliest tag of each word that a sequence is read for."""
    pieces = []
    for logits_SC, sequence in zip(outputs["logits"], encoded, strict=True):
        probabilities = softmax(logits_SC[list(sequence.word_starts)])
        best, scores = probabilities.argmax(axis=1), probabilities.max(axis=1).tolist()
        pieces.append([(context.labels[label], score) for label, score in zip(best, scores, strict=True)])
    return pieces


def merge(request: Request, pieces: Sequence[Sequence[Tagged]], context: Context) -> Answer:
    """`{"entities": [{"start", "end", "label", "text", "score"}]}`, with offsets in characters of the text.

    An entity's score is the mean of its words' probabilities.
    """
    text, words = check(request)
    tagged = [word for piece in pieces for word in piece]
    entities = []
    for span in spans_of([tag for tag, _ in tagged]):
        start, end = words[span.start][0], words[span.end - 1][1]
        score = float(np.mean([probability for _, probability in tagged[span.start : span.end]]))
        entities.append({"start": start, "end": end, "label": span.label, "text": text[start:end], "score": score})
    return {"entities": entities}


def decision(answer: Answer) -> list[tuple[int, int, str]]:
    return [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]]


def score(answers: Sequence[Answer], golds: Sequence[Sequence[GoldWord]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities (exact span and type, micro average), and accuracy of tags."""
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    wanted = [[word.tag for word in gold] for gold in golds]
    found = [_tags(decision(answer), gold) for answer, gold in zip(answers, golds, strict=True)]
    precision, recall, f1, _ = precision_recall_fscore_support(wanted, found, average="micro", zero_division=0)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "token_accuracy": float(accuracy_score(wanted, found)),
    }


def _tags(entities: Iterable[tuple[int, int, str]], gold: Sequence[GoldWord]) -> list[str]:
    """The entities of an answer as the tags of the gold's words, at whose bounds they begin and end."""
    first = {word.start: place for place, word in enumerate(gold)}
    last = {word.end: place for place, word in enumerate(gold)}
    return tags_of([Span(first[start], last[end] + 1, label) for start, end, label in entities], len(gold))


def features(examples: Sequence[Example], context: Context) -> Features:
    """Each window is an item; a word is labelled in the window that is read for it."""
    numbers = {label: number for number, label in enumerate(context.labels)}
    sequences: list[tuple[Encoded, ...]] = []
    targets: list[list[int]] = []
    windows_of = encode([example.request for example in examples], context)
    for example, windows in zip(examples, windows_of, strict=True):
        words = iter(example.gold)
        for window in (window for window in windows if window.word_starts):
            target = [IGNORE_INDEX] * len(window)
            for place in window.word_starts:
                target[place] = numbers[next(words).tag]
            sequences.append((window,))
            targets.append(target)
    return Features(sequences, token_targets={"labels": targets})


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForTokenClassification

    model = BertForTokenClassification(config, num_labels)
    initialize(model, config.initializer_range)
    return model


def forward(model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The module's outputs where there are labels; of other tokens nothing is learnt."""
    return model(**inputs, asked_BS=targets["labels"] != IGNORE_INDEX)  # type: ignore[no-any-return]


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    from torch.nn.functional import cross_entropy

    logits, wanted = outputs["logits"].float().flatten(0, 1), targets["labels"].flatten()
    return {"loss": cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORE_INDEX)}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": (outputs["logits"].argmax(-1) == targets["labels"]).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": int((targets["labels"] != IGNORE_INDEX).sum())}


TAG = Task(
    name="tag",
    architecture="BertForTokenClassification",
    outputs=("logits",),
    per_token=("logits",),
    metric="f1",
    settings=NoSettings,
    read=read,
    labels=labels,
    settle=as_given,
    refuse=take_all,  # a type that training never saw is missed, and the metric says so
    check=check,
    encode=encode,
    decode=decode,
    merge=merge,
    decision=decision,
    score=score,
    features=features,
    build=build,
    forward=forward,
    losses=losses,
    correct=correct,
    counts=counts,
)
