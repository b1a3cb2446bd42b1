from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertfast.tasks.squad_metric import exact_match, f1, normalize, squad_scores
from bertfast.text.squad import read_squad


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("Theatre and another", "theatre and another"),
        ("U.S.", "us"),
        ("the-end", "theend"),
        ("\u2014 the \u6771\u4eac", "\u2014 \u6771\u4eac"),
        ("A", ""),
    ],
)
def test_case_articles_punctuation_and_spaces_do_not_count(answer: str, normalised: str) -> None:
    assert normalize(answer) == normalised


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "overlap"),
    [
        ("the river", "River!", 1, 1),
        ("old river bank", "river bank", 0, 0.8),
        ("river river", "river", 0, 2 / 3),
        ("bridge", "river", 0, 0),
        ("", "river", 0, 0),
        ("", "", 1, 1),
    ],
)
def test_exact_match_and_overlap(answer: str, gold: str, exact: float, overlap: float) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap)


def test_the_best_of_several_golds_counts() -> None:
    scores = squad_scores(["river bank"], [["bridge", "the old river bank", "river"]])
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(0.8)}


def test_unanswerable_questions_are_scored_apart() -> None:
    scores = squad_scores(["", "river", "", "bridge"], [[], [], ["river"], ["a bridge"]])
    assert scores == {
        "exact_match": 0.5,
        "f1": 0.5,
        "HasAns_exact": 0.5,
        "HasAns_f1": 0.5,
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
    }
    assert set(squad_scores([""], [[]])) == {"exact_match", "f1", "NoAns_exact", "NoAns_f1"}


def test_a_gold_of_articles_alone_is_met_by_silence() -> None:
    assert squad_scores([""], [["the"]]) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.data
def test_published_predictions_score_as_published(data_folder: Path) -> None:
    squad = data_folder / "squad"
    published = json.loads((squad / "published_predictions_dev.json").read_text(encoding="utf-8"))
    examples = read_squad(squad / "dev.json")
    scores = squad_scores(
        [published[example.request["id"]] for example in examples],
        [[span.text for span in example.gold] for example in examples],
    )
    assert len(examples) == 1238
    assert round(100 * scores["exact_match"], 4) == 81.7447
    assert round(100 * scores["f1"], 4) == 89.6921
