"""How well scores order things: against grades, and with what is right among what is wrong.

Ties count against the ranking, so that a model that gives everything the same score is not praised for it.

Shapes: Q queries, C candidates, H hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bertfast.text.batch import Int64

Floats = npt.NDArray[np.floating]
RECALL_AT = (1, 5, 10)
RANKED = 10
RELEVANT = 0.5
_ROWS = 1024


def unit(vectors: Floats) -> Floats:
    """Vectors [..., H] at length 1; a vector of zeros stays one."""
    lengths: Floats = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def correlations(scores: Sequence[float] | Floats, grades: Sequence[float] | Floats) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 where there is no order to compare."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(scores) == 0 or np.ptp(grades) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(scores, grades).statistic),
        "pearson": float(pearsonr(scores, grades).statistic),
    }


def rank_of_best(scores: Floats, right: npt.NDArray[np.bool_], ignored: npt.NDArray[np.bool_] | None = None) -> int:
    """The rank (from 1) of the best right candidate among the wrong ones.

    Args:
        scores: [C].
        right: [C]; at least one is True.
        ignored: [C], True where a candidate is neither right nor wrong.
    """
    wrong = ~right if ignored is None else ~(right | ignored)
    return 1 + int((scores[wrong] >= scores[right].max()).sum())


def retrieval_ranks(queries: Floats, answers: Floats, texts: Sequence[tuple[str, str]]) -> Int64:
    """Where each query finds its answer by cosine among all answers, int64 from 1.

    Equal texts are one: a query's answers are those of all rows with its text, and an answer that occurs twice is one
    candidate. An answer that is the query itself, word for word, is left out, and so is a query that has no other.

    Args:
        queries: [Q, H].
        answers: [Q, H], in the same order.
        texts: the query and the answer of each row, as text.
    """
    first_row = {answer: row for row, (_, answer) in reversed(list(enumerate(texts)))}
    place = {answer: number for number, answer in enumerate(first_row)}
    candidates = unit(answers[list(first_row.values())])
    right_of = defaultdict(set)
    for query, answer in texts:
        right_of[query].add(place[answer])
    ranks = []
    for start in range(0, len(texts), _ROWS):
        similarities = unit(queries[start : start + _ROWS]) @ candidates.T
        for scores, (query, _) in zip(similarities, texts[start : start + _ROWS], strict=False):
            right, itself = np.zeros(len(place), bool), np.zeros(len(place), bool)
            right[list(right_of[query])] = True
            if query in place:
                itself[place[query]] = True
            if (right := right & ~itself).any():
                ranks.append(rank_of_best(scores, right, itself))
    return np.array(ranks, np.int64)


def recalls(ranks: Int64) -> dict[str, float]:
    """Recall@k and the mean reciprocal rank of what each query was to find; 0 where there was nothing to find."""
    count = max(1, len(ranks))
    found = {f"recall@{k}": float((ranks <= k).sum() / count) for k in RECALL_AT}
    return found | {"mrr": float((1 / ranks).sum() / count)}


def grouped_rankings(
    scores: Sequence[float] | Floats, grades: Sequence[float] | Floats, queries: Sequence[str]
) -> dict[str, float]:
    """MRR@10 and NDCG@10 over the queries that have a choice: two candidates or more, and a relevant one among them.

    Args:
        grades: how well each candidate answers its query, 0 to 1; from 0.5 on it is relevant.
        queries: the query of each candidate.
    Returns:
        Nothing where no query has a choice.
    """
    from sklearn.metrics import ndcg_score

    groups = list(_with_a_choice(np.asarray(scores), np.asarray(grades), queries))
    if not groups:
        return {}
    ranks = np.array([rank_of_best(given, relevance >= RELEVANT) for given, relevance in groups])
    gains = [ndcg_score([relevance], [given], k=RANKED) for given, relevance in groups]
    return {
        f"mrr@{RANKED}": float(np.where(ranks <= RANKED, 1 / ranks, 0).mean()),
        f"ndcg@{RANKED}": float(np.mean(gains)),
        "queries": float(len(groups)),
    }


def _with_a_choice(scores: Floats, grades: Floats, queries: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
    rows = defaultdict(list)
    for row, query in enumerate(queries):
        rows[query].append(row)
    for group in rows.values():
        relevant = grades[group] >= RELEVANT
        if relevant.any() and not relevant.all():  # else every order is the right one, or none is
            yield scores[group], grades[group]
