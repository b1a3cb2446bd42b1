"""Exact match and F1 by the rule of SQuAD's official evaluation (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=2**16)  # the same answers are scored once for every resample
def normalize(answer: str) -> str:
    """Lower case, without ASCII punctuation and articles, words parted by one space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where the two are the same when normalised, else 0."""
    return float(normalize(answer) == normalize(gold))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words of the two; where one has no words, exact match."""
    words, gold_words = normalize(answer).split(), normalize(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    shared = (Counter(words) & Counter(gold_words)).total()
    return 2 * shared / (len(words) + len(gold_words))


def squad_scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores over questions, as fractions.

    Args:
        answers: one text a question; empty for no answer.
        golds: the right answers of each question, of which the best counts; none for an unanswerable question.
    Returns:
        `exact_match` and `f1`, and, where a question is unanswerable, the same over those that have an answer
        (`HasAns_exact`, `HasAns_f1`) and over those that have none (`NoAns_exact`, `NoAns_f1`).
    """
    # A gold answer of nothing but articles and punctuation can be met by no words, and is none by the official rule.
    judged = [[gold for gold in texts if normalize(gold)] or [""] for texts in golds]
    pairs = list(zip(answers, judged, strict=True))
    exact = np.array([max(exact_match(answer, gold) for gold in texts) for answer, texts in pairs])
    overlap = np.array([max(f1(answer, gold) for gold in texts) for answer, texts in pairs])
    scores = {"exact_match": float(exact.mean()), "f1": float(overlap.mean())}
    answerable = np.array([bool(texts) for texts in golds])
    if answerable.all():
        return scores
    for name, chosen in (("HasAns", answerable), ("NoAns", ~answerable)):
        if chosen.any():
            scores |= {f"{name}_exact": float(exact[chosen].mean()), f"{name}_f1": float(overlap[chosen].mean())}
    return scores
