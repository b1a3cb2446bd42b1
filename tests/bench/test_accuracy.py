from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from bertfast.bench.accuracy import Judge, compare_answers, not_finite
from bertfast.errors import DataError
from bertfast.tasks import Answer
from bertfast.tasks.classify import CLASSIFY
from bertfast.tasks.embed import EMBED
from bertfast.tasks.multi_label import MULTI_LABEL
from bertfast.tasks.qa import QA
from bertfast.tasks.regress import REGRESS
from bertfast.text.squad import Span


def compared(judge: Judge, answers: Sequence[Answer], reference: Sequence[Answer]) -> dict[str, Any]:
    metrics = judge.metrics(reference)
    return judge.compare(answers, reference, judge.metrics(answers), metrics, judge.resampled(reference, metrics))


def answer(label: str, a: float) -> dict[str, object]:
    return {"label": label, "score": max(a, 1 - a), "scores": {"a": a, "b": 1 - a}}


def test_flips_and_drift_are_counted_row_by_row() -> None:
    reference = [answer("a", 0.9), answer("b", 0.2), answer("a", 0.6)]
    other = [answer("a", 0.7), answer("b", 0.25), answer("b", 0.45)]
    flips, drift = compare_answers(CLASSIFY, other, reference)
    assert flips == 1
    assert drift == pytest.approx(0.2)
    with pytest.raises(DataError, match="2 answers cannot be compared with 3"):
        compare_answers(CLASSIFY, other[:2], reference)


def test_numbers_drift_where_nothing_is_decided() -> None:
    flips, drift = compare_answers(REGRESS, [{"score": 1.0}, {"score": 4.5}], [{"score": 1.2}, {"score": 4.0}])
    assert (flips, drift) == (None, pytest.approx(0.5))
    pair = {"embedding": [1.0, 0.0], "pair_embedding": [0.0, 2.0], "score": 0.0}
    assert compare_answers(EMBED, [pair], [pair | {"embedding": [3.0, 0.0]}]) == (None, pytest.approx(0.0))
    assert compare_answers(EMBED, [pair], [pair | {"pair_embedding": [1.5, 2.0]}])[1] == pytest.approx(0.2)


def test_what_is_lost_and_gained_is_counted_row_by_row() -> None:
    golds = ["a", "a", "b", "b", "b"]
    reference = [answer(label, 0.9) for label in "aaabb"]
    other = [answer(label, 0.9) for label in "abbab"]
    found = compared(Judge(CLASSIFY, golds), other, reference)
    assert (found["lost"], found["gained"], found["flips"]) == (2, 1, 3)
    low, high = found["drop_interval"]
    assert low <= 0.2 <= high  # 4 of 5 were right, and 3 are
    assert compared(Judge(CLASSIFY, golds), reference, reference)["drop_interval"] == (0.0, 0.0)


def test_without_golds_there_are_flips_only() -> None:
    judge = Judge(CLASSIFY, None)
    assert judge.metrics([answer("a", 0.9)]) == {}
    assert judge.quoted({}) is judge.resampled([answer("a", 0.9)], {}) is None
    assert compared(judge, [answer("b", 0.1)], [answer("a", 0.9)]) == {"flips": 1, "largest_score_drift": 0.8}


def test_where_nothing_is_right_or_wrong_nothing_is_lost() -> None:
    found = compared(Judge(REGRESS, [1.0, 4.0, 2.0]), *[[{"score": x} for x in (1.0, 4.5, 2.0)]] * 2)
    assert "lost" not in found
    assert found["flips"] is None


def test_answers_that_are_no_numbers_are_counted_and_not_scored() -> None:
    broken = [answer("a", 0.9), answer("a", math.nan), answer("b", math.inf)]
    assert not_finite(broken) == 2
    assert not_finite([{"embedding": [0.1, -math.inf]}, {"entities": [{"start": 3, "score": 0.5}]}]) == 1
    judge = Judge(CLASSIFY, ["a", "a", "b"])
    assert judge.metrics(broken) == {}
    assert compared(judge, broken, [answer("a", 0.9)] * 3) == {}
    assert Judge(REGRESS, [1.0, 2.0]).metrics([{"score": math.nan}, {"score": 1.0}]) == {}


def test_tasks_say_what_is_right() -> None:
    assert CLASSIFY.right is not None
    assert CLASSIFY.right({"label": "a"}, "a")
    assert not CLASSIFY.right({"label": "a"}, "b")
    assert MULTI_LABEL.right is not None
    assert MULTI_LABEL.right({"labels": ["b", "a"]}, ("a", "b"))
    assert not MULTI_LABEL.right({"labels": ["a"]}, ("a", "b"))
    assert QA.right is not None
    assert QA.right({"answer": "The river."}, [Span("a bridge", 0), Span("river", 9)])
    assert not QA.right({"answer": "river bank"}, [Span("river", 9)])
    assert QA.right({"answer": ""}, [])
    assert REGRESS.right is EMBED.right is None
