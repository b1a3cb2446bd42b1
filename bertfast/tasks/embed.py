"""Sentence vectors: alike for texts that belong together (Reimers and Gurevych 2019).

Shapes: N pairs, C texts of each (the text, its pair and perhaps a hard negative), H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.model.sentence_transformers import write_sentence_encoder
from bertfast.tasks.ranking import correlations, recalls, retrieval_ranks, unit
from bertfast.tasks.task import (
    Answer,
    Context,
    Outputs,
    Targets,
    Task,
    as_given,
    no_labels,
    plain_forward,
    take_all,
    text_or_pair,
)
from bertfast.text.batch import Features
from bertfast.text.labelled import Columns, Example, Request, id_of, label_number, read_examples
from bertfast.text.tables import Row, read_table
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn

TRIPLET = ("anchor", "positive", "negative")
GRADE_NAMES = ("score", "similarity", "similarity_score", "label")
Vector = npt.NDArray[np.float32]


class EmbedSettings(Config):
    """How a text becomes a vector, and what vectors are learnt from."""

    pooling: Literal["mean", "cls"] = Field("mean", description="the mean of a text's tokens, or its [CLS]")
    normalize: bool = Field(True, description="vectors of length 1")
    loss: Literal["auto", "in-batch", "cosent"] = Field(
        "auto", description="cosent: the order of graded pairs; in-batch: each text finds its pair; auto: by the data"
    )
    scale: float = Field(20.0, gt=0, description="what cosines are multiplied by in the loss")


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    """Pairs with a grade, pairs that belong together, triplets (`anchor`, `positive`, `negative`), or single texts.

    The gold is the grade of a pair, or the texts that belong together: what is to be found is told by its words. Where
    columns are named, there are no triplets.

    Raises:
        DataError: golds are needed, and the file has single texts, or grades that some rows lack.
    """
    first = next((row for _, row in read_table(path)), {})
    if set(TRIPLET) <= set(first) and columns == Columns():
        return [_triplet(where, row) for where, row in read_table(path)]
    graded = columns.label is not None or any(name in first for name in GRADE_NAMES)
    needed = golds_needed and graded
    examples = read_examples(path, columns, labels_needed=needed, usual_labels=GRADE_NAMES, gold=label_number)
    if "pair" not in examples[0].request:
        if golds_needed:
            raise DataError(
                f"{path} has single texts, and embed learns from pairs. Name the second with --pair-column."
            )
        return [replace(example, gold=None) for example in examples]
    if any(example.gold is not None for example in examples):
        return examples
    return [replace(example, gold=(example.request["text"], example.request["pair"])) for example in examples]


def _triplet(where: str, row: Row) -> Example:
    texts = tuple(row.get(name) for name in TRIPLET)
    for name, text in zip(TRIPLET, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{where}: '{name}' is {text!r}, and a text is needed.")
    return Example({"text": texts[0], "pair": texts[1], **id_of(row)}, texts, where)


def encode(requests: Sequence[Request], context: Context) -> list[list[Encoded]]:
    """One sequence a text: a pair is two."""
    texts = [[text for text in text_or_pair(request) if text is not None] for request in requests]
    return _encode_groups(texts, context)


def _encode_groups(groups: Sequence[Sequence[str]], context: Context) -> list[list[Encoded]]:
    flat = iter(context.tokenizer.encode([(text, None) for group in groups for text in group], context.max_length))
    return [[next(flat) for _ in group] for group in groups]


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Vector]:
    return list(outputs["embedding"])


def merge(request: Request, pieces: Sequence[Vector], context: Context) -> Answer:
    """`{"embedding"}` of a text, float32 [H]; of a pair `{"embedding", "pair_embedding", "score"}`, the score being
    the cosine."""
    if len(pieces) == 1:
        return {"embedding": pieces[0]}
    first, second = (unit(piece.astype(np.float64)) for piece in pieces)
    return {"embedding": pieces[0], "pair_embedding": pieces[1], "score": float(first @ second)}


def score(answers: Sequence[Answer], golds: Sequence[Any]) -> dict[str, float]:
    """Of graded pairs the correlations of grade and cosine; of other pairs how well each text finds its pair among
    all pairs' second texts."""
    if isinstance(golds[0], float):
        return correlations([answer["score"] for answer in answers], golds)
    first, second = (
        np.array([answer[name] for answer in answers], np.float32) for name in ("embedding", "pair_embedding")
    )
    return recalls(retrieval_ranks(first, second, [(gold[0], gold[1]) for gold in golds]))


def features(examples: Sequence[Example], context: Context) -> Features:
    """All texts of each example, and `grades` float32 [N] or `text_ids` int64 [N, C], equal where the words are.

    A text is compared with those of its step, which are alike in length unless `bucket_batches` is 1.

    Raises:
        DataError: the examples are not what the loss learns from.
    """
    settings = context.settings
    assert isinstance(settings, EmbedSettings)
    graded = isinstance(examples[0].gold, float)
    if settings.loss == "cosent" and not graded:
        raise DataError(
            f"{examples[0].where} has no grade, and task.loss=cosent learns from graded pairs. Name the column of the "
            "grades with --label-column, or leave task.loss out."
        )
    groups: Sequence[Sequence[str]]
    if graded and settings.loss != "in-batch":
        _refuse_equal_grades(examples)
        groups = [(example.request["text"], example.request["pair"]) for example in examples]
        targets: Targets = {"grades": np.array([example.gold for example in examples], np.float32)}
    else:
        groups = _belonging_together(examples) if graded else [example.gold for example in examples]
        number: dict[str, int] = {}
        ids = [[number.setdefault(text, len(number)) for text in group] for group in groups]
        targets = {"text_ids": np.array(ids, np.int64)}
    return Features([tuple(item) for item in _encode_groups(groups, context)], targets, whole_steps=True)


def _refuse_equal_grades(examples: Sequence[Example]) -> None:
    if len(grades := {example.gold for example in examples}) == 1:
        raise DataError(
            f"all {len(examples)} training pairs have the grade {grades.pop():g}, so there is no order to learn. "
            "Pass --set task.loss=in-batch if all of them belong together."
        )


def _belonging_together(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Of graded pairs those with the highest grade."""
    highest = max(example.gold for example in examples)
    return [(example.request["text"], example.request["pair"]) for example in examples if example.gold == highest]


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import SentenceEncoder

    assert isinstance(settings, EmbedSettings)
    model = SentenceEncoder(config, settings.pooling, settings.normalize)
    initialize(model, config.initializer_range)
    return model


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """CoSENT where the targets are grades, else the texts' search for their pairs among the step's other texts."""
    from bertfast.model.losses import cosent, cosine_matrix, cosines, info_nce

    assert isinstance(settings, EmbedSettings)
    if "grades" in targets:
        first_NH, second_NH = outputs["embedding"].chunk(2)
        return {"loss": cosent(cosines(first_NH, second_NH), targets["grades"], settings.scale)}
    ids_NC, vectors = targets["text_ids"], outputs["embedding"]
    similarity_NM = cosine_matrix(vectors[: len(ids_NC)], vectors[len(ids_NC) :])
    return {"loss": info_nce(similarity_NM, neither_right_nor_wrong(ids_NC), settings.scale)}


def neither_right_nor_wrong(ids_NC: Tensor) -> Tensor:
    """bool [N, N * (C - 1)]: the candidates that are no negatives of a text, though they are not its own pair.

    They are its own pair in other words' place (the same text again), the text itself, and what belongs to the same
    text in another example.
    """
    import torch

    firsts, own, candidates = ids_NC[:, :1], ids_NC[:, 1:2], ids_NC[:, 1:].T.flatten()
    same_first = (firsts == firsts.T).repeat(1, ids_NC.shape[1] - 1)
    same_first[:, len(ids_NC) :] = False  # a negative is one for every example of its text
    excluded = (candidates == own) | (candidates == firsts) | same_first
    diagonal = torch.arange(len(ids_NC), device=ids_NC.device)
    excluded[diagonal, diagonal] = False
    return excluded


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {}


def counts(targets: Targets) -> dict[str, float]:
    """CoSENT is one number a step; the search is a sum over its texts."""
    return {"loss": len(targets["text_ids"]) if "text_ids" in targets else 1}


def distill(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], targets: Mapping[str, Tensor], temperature: float
) -> dict[str, Tensor]:
    """The mean squared difference between both models' cosines of all texts of a step with each other, as often as
    `counts` says. The vectors themselves may be of different sizes."""
    from bertfast.model.losses import cosine_matrix

    found, wanted = (cosine_matrix(outputs["embedding"], outputs["embedding"]) for outputs in (student, teacher))
    return {"loss": (found - wanted).square().mean() * (len(targets["text_ids"]) if "text_ids" in targets else 1)}


def furnish(path: Path, config: ModelConfig, context: Context) -> None:
    """Write what makes a checkpoint's directory a folder that sentence-transformers opens."""
    settings = context.settings
    assert isinstance(settings, EmbedSettings)
    write_sentence_encoder(path, config.hidden_size, context.max_length, settings.pooling, settings.normalize)


EMBED = Task(
    name="embed",
    architecture="BertModel",
    outputs=("embedding",),
    per_token=(),
    metric="spearman",
    metric_otherwise="recall@1",
    settings=EmbedSettings,
    read=read,
    labels=no_labels,
    settle=as_given,
    refuse=take_all,
    check=text_or_pair,
    encode=encode,
    decode=decode,
    merge=merge,
    decision=None,
    score=score,
    features=features,
    build=build,
    forward=plain_forward,
    losses=losses,
    correct=correct,
    counts=counts,
    of_the_weights=("pooling", "normalize"),
    furnish=furnish,
    distill=distill,
)
