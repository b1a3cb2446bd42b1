from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.tasks.ranking import correlations, grouped_rankings, rank_of_best, recalls, retrieval_ranks, unit


def test_a_tie_counts_against_the_ranking() -> None:
    right = np.array([False, True, False, False])
    assert rank_of_best(np.array([0.1, 0.9, 0.3, 0.2]), right) == 1
    assert rank_of_best(np.array([0.9, 0.9, 0.9, 0.2]), right) == 3


def test_the_best_of_several_right_candidates_counts() -> None:
    scores, right = np.array([0.5, 0.9, 0.7]), np.array([True, False, True])
    assert rank_of_best(scores, right) == 2
    assert rank_of_best(scores, right, ignored=np.array([False, True, False])) == 1


def test_each_query_is_ranked_among_all_answers() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    answers = np.array([[3.0, 0.1], [1.0, 0.0], [0.0, 0.5]])
    ranks = retrieval_ranks(queries, answers, [("a", "x"), ("b", "y"), ("c", "z")])
    assert ranks.tolist() == [2, 3, 3]
    assert recalls(ranks) == {
        "recall@1": 0.0,
        "recall@5": 1.0,
        "recall@10": 1.0,
        "mrr": pytest.approx((1 / 2 + 1 / 3 + 1 / 3) / 3),
    }


def test_equal_texts_are_one_and_all_answers_of_a_query_are_right() -> None:
    queries = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    answers = np.array([[0.9, 0.1], [1.0, 0.0], [1.0, 0.0]])
    texts = [("a", "x"), ("a", "y"), ("b", "y")]
    assert retrieval_ranks(queries, answers, texts).tolist() == [1, 1, 2]


def test_the_query_itself_is_no_candidate() -> None:
    queries, answers = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.9, 0.1], [1.0, 0.0]])
    assert retrieval_ranks(queries, answers, [("a", "x"), ("b", "a")]).tolist()[0] == 1
    assert retrieval_ranks(queries, answers, [("a", "x"), ("b", "y")]).tolist()[0] == 2


def test_a_query_does_not_find_itself() -> None:
    queries, answers = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    assert retrieval_ranks(queries, answers, [("a", "a"), ("a", "x"), ("b", "y")]).tolist() == [2, 2, 2]
    assert retrieval_ranks(queries, answers, [("a", "a"), ("c", "x"), ("b", "y")]).tolist() == [3, 2]
    nothing = retrieval_ranks(queries, queries, [("a", "a"), ("a", "a"), ("b", "b")])
    assert (nothing.tolist(), set(recalls(nothing).values())) == ([], {0.0})


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    same = np.ones((20, 4))
    ranks = retrieval_ranks(same, same, [(f"a{n}", f"b{n}") for n in range(20)])
    assert ranks.tolist() == [20] * 20
    assert recalls(ranks)["recall@10"] == 0


@given(st.permutations(range(12)))
def test_the_order_of_the_pairs_changes_no_rank(order: list[int]) -> None:
    rng = np.random.default_rng(3)
    queries, answers = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    texts = [(f"a{n % 9}", f"b{n % 7}") for n in range(12)]
    answers = answers[np.arange(12) % 7]
    ranks = retrieval_ranks(queries, answers, texts)
    turned = retrieval_ranks(queries[order], answers[order], [texts[n] for n in order])
    assert turned.tolist() == ranks[order].tolist()


def test_groups_are_ranked_by_their_own_scores() -> None:
    queries = ["a", "a", "a", "b", "b", "alone", "hopeless", "hopeless"]
    scores = [0.9, 0.8, 0.1, 0.2, 0.7, 0.5, 0.1, 0.2]
    grades = [0, 1, 0, 0, 1, 1, 0, 0]
    found = grouped_rankings(scores, grades, queries)
    assert found == {
        "mrr@10": pytest.approx((1 / 2 + 1) / 2),
        "ndcg@10": pytest.approx((1 / math.log2(3) + 1) / 2),
        "queries": 2,
    }


def test_what_stands_after_the_tenth_place_is_not_found() -> None:
    scores = [float(n) for n in range(12)]
    assert grouped_rankings(scores, [1.0] + [0.0] * 11, ["a"] * 12)["mrr@10"] == 0
    assert grouped_rankings(scores, [0.0, 0.0, 1.0] + [0.0] * 9, ["a"] * 12)["mrr@10"] == pytest.approx(1 / 10)


def test_without_a_choice_nothing_is_ranked() -> None:
    assert grouped_rankings([0.1, 0.2], [1.0, 0.0], ["a", "b"]) == {}


def test_correlations_with_grades() -> None:
    found = correlations([0.1, 0.2, 0.9], [1.0, 2.0, 3.0])
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef([0.1, 0.2, 0.9], [1, 2, 3])[0, 1])
    assert correlations([0.4, 0.4, 0.4], [1.0, 2.0, 3.0]) == {"spearman": 0.0, "pearson": 0.0}


def test_a_vector_of_zeros_stays_finite() -> None:
    assert unit(np.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]


def test_a_query_without_a_wrong_candidate_is_no_choice() -> None:
    assert grouped_rankings([0.1, 0.2], [1.0, 1.0], ["a", "a"]) == {}
