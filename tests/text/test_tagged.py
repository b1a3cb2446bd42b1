from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bertfast.errors import DataError
from bertfast.text.labelled import Columns
from bertfast.text.tagged import read_tagged

ROWS: list[dict[str, object]] = [
    {"tokens": ["Ann", "Lee", "left"], "ner_tags": ["B-per", "I-per", "O"]},
    {"tokens": [], "ner_tags": []},
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_holds_the_same_sentences(tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), table)
    conll = tmp_path / "rows.bio"
    conll.write_text("Ann B-per\nLee I-per\nleft O\n")
    bioes = {"words": ["Ann", "Lee", "left"], "labels": ["B-per", "E-per", "O"]}
    read = [
        read_tagged(write(tmp_path / "rows.jsonl", ROWS[0]), Columns()),
        read_tagged(write(tmp_path / "named.jsonl", bioes), Columns(text="words", label="labels")),
        read_tagged(table, Columns()),
        read_tagged(conll, Columns()),
        read_tagged(conll, Columns(text="1", label="2")),
    ]
    for sentences in read:
        assert [(item.tokens, item.tags) for item in sentences] == [(["Ann", "Lee", "left"], ["B-per", "I-per", "O"])]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_where_no_tags_are_needed_every_row_comes_with_its_id(tmp_path: Path, kind: str) -> None:
    rows = [ROWS[0] | {"id": "a"}, ROWS[1] | {"id": "b"}]
    file = write(tmp_path / "rows.jsonl", *rows)
    if kind == "parquet":
        file = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = read_tagged(file, Columns(), tags_needed=False)
    assert [(item.id, len(item.tokens)) for item in found] == [({"id": "a"}, 3), ({"id": "b"}, 0)]
    with pytest.warns(UserWarning, match="1 of 2 rows have no words and were left out"):
        assert len(read_tagged(file, Columns())) == 1


def test_rows_are_of_one_split(tmp_path: Path) -> None:
    rows = [{"split": split, "tokens": [split]} for split in ("train", "dev")]
    file = write(tmp_path / "rows.jsonl", *rows)
    (sentence,) = read_tagged(tmp_path / "rows.jsonl:dev", Columns())
    assert (sentence.tokens, sentence.where) == (["dev"], f"{file}:2")
    with pytest.raises(DataError, match="is of the split 'dev' and the rows before it are of 'train'"):
        read_tagged(file, Columns())


def test_words_have_no_second_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Leave --pair-column out"):
        read_tagged(write(tmp_path / "rows.jsonl", *ROWS), Columns(pair="ner_tags"))


def test_rows_without_tags_are_read(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"]}, {"tokens": ["a"], "tags": None}]
    sentences = read_tagged(write(tmp_path / "rows.jsonl", *rows), Columns())
    assert [sentence.tags for sentence in sentences] == [None, None]
    assert sentences[0].where.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, r"rows.jsonl:1 has 1 tokens and 2 'tags'"),
        ({"tokens": ["a"], "tags": [3]}, r"has \[3\] as 'tags'.*numbers must be written as their names"),
        ({"tokens": ["a"], "tags": ["per"]}, r"rows.jsonl:1 has 'per' where a tag should be"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, r"has \['a', ''\] as 'tokens'.*none of them empty"),
        ({"text": "a"}, r"has None as 'tokens'"),
        ({"tokens": [], "tags": []}, r"rows.jsonl holds no sentence"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tagged(write(tmp_path / "rows.jsonl", row), Columns())


@pytest.mark.parametrize("column", ["form", "0", "-1"])
def test_columns_of_a_conll_file_have_no_names(tmp_path: Path, column: str) -> None:
    with pytest.raises(DataError, match=f"no column '{column}': its columns have numbers, from 1"):
        read_tagged(tmp_path / "rows.conll", Columns(text=column))
