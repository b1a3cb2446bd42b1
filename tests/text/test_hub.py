"""Data sets of the hub. None is reached: the client is replaced by one that hands over what a test has built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bertfast.errors import DataError
from bertfast.text.hub import local_data, name_labels
from bertfast.text.labelled import read_examples

datasets.disable_progress_bars()
SENTIMENT = ClassLabel(names=["negative", "positive"])
TAGS = ClassLabel(names=["O", "B-place", "I-place"])


@pytest.fixture
def reviews() -> Dataset:
    columns = {"sentence": ["The river.", "A bridge.", "Which?"], "label": [1, 0, -1], "stars": [5, 1, 3]}
    return Dataset.from_dict(
        columns, features=Features(sentence=Value("string"), label=SENTIMENT, stars=Value("int64"))
    )


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[tuple[Any, ...]]]:
    """Makes `load_dataset` give something, or raise it; returns the list of its calls."""

    def replace(result: Any) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, config: str | None, split: str | None) -> Any:
            calls.append((name, config, split))
            if isinstance(result, Exception):
                raise result
            return result[split] if split else result

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        return calls

    return replace


def test_a_local_path_stays_as_it_is() -> None:
    assert local_data(Path("rows.tsv")) == Path("rows.tsv")


@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        ("hub:owner/name:train", ("owner/name", None, "train")),
        ("hub:owner/name/some-config:train", ("owner/name", "some-config", "train")),
        ("hub:name:train", ("name", None, "train")),
    ],
)
def test_a_reference_names_data_set_config_and_split(
    client: Any, reviews: Dataset, reference: str, asked: tuple[Any, ...]
) -> None:
    calls = client(DatasetDict(train=reviews, test=reviews))
    local_data(Path(reference))
    assert calls == [asked]


def test_rows_arrive_with_the_names_of_their_classes(client: Any, reviews: Dataset) -> None:
    client(DatasetDict(train=reviews, validation=reviews.select([1])))
    file = local_data(Path("hub:owner/name:train"))
    assert pyarrow.parquet.read_table(file).to_pylist() == [
        {"sentence": "The river.", "label": "positive", "stars": 5},
        {"sentence": "A bridge.", "label": "negative", "stars": 1},
        {"sentence": "Which?", "label": None, "stars": 3},
    ]
    dev = local_data(Path("hub:owner/name:validation"))
    assert [example.gold for example in read_examples(dev)] == ["negative"]
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".parquet", ".parquet"]


def test_a_file_is_as_new_as_the_data(client: Any, reviews: Dataset) -> None:
    client(DatasetDict(train=reviews))
    first = local_data(Path("hub:owner/name")).read_bytes()
    assert local_data(Path("hub:owner/name")).read_bytes() == first
    client(DatasetDict(train=reviews.select([0])))
    assert pyarrow.parquet.read_table(local_data(Path("hub:owner/name"))).num_rows == 1


def test_tags_arrive_as_names() -> None:
    columns = {"tokens": [["in", "New", "York"], []], "tags": [[0, 1, 2], []]}
    rows = Dataset.from_dict(columns, features=Features(tokens=List(Value("string")), tags=List(TAGS)))
    assert name_labels(rows)[:] == {"tokens": columns["tokens"], "tags": [["O", "B-place", "I-place"], []]}


def test_rows_without_classes_stay_as_they_are() -> None:
    rows = Dataset.from_dict({"text": ["a"], "label": [3], "score": [0.5]})
    assert name_labels(rows) is rows


def test_several_splits_are_not_chosen_among(client: Any, reviews: Dataset) -> None:
    client(DatasetDict(train=reviews, test=reviews))
    with pytest.raises(DataError, match="hub:a/b has the splits train, test. Name one: hub:a/b:train"):
        local_data(Path("hub:a/b"))


def test_the_real_client_takes_the_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` looks for a directory of that name before it looks on the hub."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("text,label\nThe river.,1\nA bridge.,0\n")
    names = "class_label: {names: {0: negative, 1: positive}}"
    features = f"[{{name: text, dtype: string}}, {{name: label, dtype: {{{names}}}}}]"
    (folder / "README.md").write_text(f"---\ndataset_info: {{features: {features}}}\n---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = pyarrow.parquet.read_table(local_data(Path("hub:owner/name:train"))).to_pylist()
    assert rows == [{"text": "The river.", "label": "positive"}, {"text": "A bridge.", "label": "negative"}]
    with pytest.raises(DataError, match=r'Unknown split "dev". Should be one of .*train'):
        local_data(Path("hub:owner/name:dev"))


@pytest.mark.parametrize("reference", ["hub:", "hub:a/b/c/d", "hub:a/b:", "hub:a b"])
def test_a_malformed_reference_is_refused(reference: str) -> None:
    with pytest.raises(DataError, match="is not of the form hub:OWNER/NAME"):
        local_data(Path(reference))


def test_a_hub_that_cannot_be_reached_is_said(client: Any) -> None:
    client(ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectTimeout)"))
    with pytest.raises(DataError, match=r"hub:a/b: the hub cannot be reached \(Couldn't reach.*Give a local path"):
        local_data(Path("hub:a/b"))


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
        ValueError('Unknown split "dev". Should be one of ["train"].'),
        RuntimeError("Dataset scripts are no longer supported, but found b.py"),
    ],
)
def test_what_the_hub_lacks_is_said_in_its_words(client: Any, error: Exception) -> None:
    client(error)
    with pytest.raises(DataError, match="hub:a/b:dev: .*The form is hub:OWNER/NAME") as raised:
        local_data(Path("hub:a/b:dev"))
    assert str(error) in str(raised.value)
