"""Several seeds: each is run once, and what they come to is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertfast.errors import ArtifactError, ConfigError
from bertfast.train.seeds import parse_seeds, run_seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("1", [0]), ("0,1,2", [0, 1, 2]), ("5, 3", [5, 3]), ("12,", None)]
)
def test_seeds_are_a_count_or_a_list(text: str, seeds: list[int] | None) -> None:
    if seeds is None:
        with pytest.raises(ConfigError, match=f"--seeds {text} is neither a count"):
            parse_seeds(text, None)
    else:
        assert parse_seeds(text, None) == seeds


def test_a_count_begins_at_the_seed_and_a_list_beside_a_seed_is_refused() -> None:
    assert parse_seeds("3", 7) == [7, 8, 9]
    with pytest.raises(ConfigError, match="--seeds 0,1 names the seeds, and so does seed=7. Leave out one"):
        parse_seeds("0,1", 7)


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "1,1", "1,x", "1.5"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a count, such as 3, nor a list of different seeds"):
        parse_seeds(text, None)


def run(seed: int, out: Path) -> dict[str, float]:
    out.mkdir(parents=True)
    return {"dev_f1": {0: 0.5, 1: 0.7, 4: 0.9}[seed], "steps": 10 + seed}


def test_the_metric_is_summarised_and_every_result_kept(tmp_path: Path) -> None:
    summary = run_seeds(run, [0, 1, 4], tmp_path / "out", ("dev_f1",))
    assert summary == json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert [summary[key] for key in ("mean", "sd", "min", "max")] == pytest.approx([0.7, 0.2, 0.5, 0.9])
    assert summary["results"]["4"] == {"dev_f1": 0.9, "steps": 14}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seed-0", "seed-1", "seed-4", "seeds.json"]


def test_an_artefact_does_not_become_the_folder_of_others(classifier: Path) -> None:
    with pytest.raises(ArtifactError, match="is an artefact, and --seeds makes a folder of several. Give --out"):
        run_seeds(run, [0], classifier, ("dev_f1",))
    assert not (classifier / "seed-0").exists()


def test_one_seed_has_no_spread_and_the_first_metric_that_there_is_counts(tmp_path: Path) -> None:
    summary = run_seeds(run, [1], tmp_path / "out", ("dev_spearman", "dev_f1", "steps"))
    assert (summary["metric"], summary["mean"], summary["sd"]) == ("dev_f1", 0.7, None)
