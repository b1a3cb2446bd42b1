"""Rows of tables, and what is wrong with one."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bertfast.errors import DataError
from bertfast.text.tables import read_table

SPLITS = "split\ttext\ntrain\ta\ndev\tb\ntrain\tc\ntest\td\n"


def table(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def rows(file: Path) -> list[dict[str, object]]:
    return [row for _, row in read_table(file)]


def test_quotes_are_ordinary_in_tsv_and_quote_in_csv(tmp_path: Path) -> None:
    text = '"a ""b"", c"'
    assert rows(table(tmp_path / "a.tsv", f"text\n{text}\n")) == [{"text": text}]
    assert rows(table(tmp_path / "a.csv", f"text\n{text}\n")) == [{"text": 'a "b", c'}]


def test_a_row_over_lines_is_named_by_its_first(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 'text,label\n"one\r\ntwo",1\n\n"three",0\n')
    assert list(read_table(file)) == [
        (f"{file}:2", {"text": "one\ntwo", "label": "1"}),
        (f"{file}:5", {"text": "three", "label": "0"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\na,1\n"b,1\nc,1\nd,1\n', r"a.csv:3: the row that begins here is not well-formed.*line 5\).*quote"),
        ('text,label\na,1\n"b,1\n"c",1\nd,1\n', r"a.csv:3: the row that begins here is not well-formed.*line 4\)"),
        ('text,label\na,1\n"b\n",1,2\n', r"a.csv:3 \(to line 4\) has 3 fields and the header has 2.*quote left open"),
        ("text,label,text\na,1,b\n", r"a.csv:1 names the column 'text' 2 times"),
        ("text,label\na\n", r"a.csv:2 has 1 fields and the header has 2"),
    ],
)
def test_bad_csv_is_named_where_it_begins(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(table(tmp_path / "a.csv", content))


@pytest.mark.parametrize("line", ["a\tb\t1", "a", 'a "b'])
def test_a_tsv_row_that_does_not_fit_is_named_with_what_tsv_cannot_hold(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"a.tsv:3 has \d fields and the header has 2.*needs CSV or JSON lines"):
        rows(table(tmp_path / "a.tsv", f"text\tlabel\na\t1\n{line}\n"))


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_separators_after_the_last_column_and_empty_rows_hold_nothing(tmp_path: Path, name: str, mark: str) -> None:
    content = f" text {mark}label\na{mark}1{mark}{mark}\n{mark}\n\n"
    assert rows(table(tmp_path / name, content)) == [{"text": "a", "label": "1"}]


def test_a_split_is_named_behind_the_file(tmp_path: Path) -> None:
    table(tmp_path / "a.tsv.gz", SPLITS)
    for split, texts in {"train": "ac", "dev": "b", "dev+test": "bd"}.items():
        assert "".join(str(row["text"]) for row in rows(tmp_path / f"a.tsv.gz:{split}")) == texts


def test_splits_may_be_numbers_and_have_spaces_around_them(tmp_path: Path) -> None:
    table(
        tmp_path / "a.jsonl", '{"split": 0, "text": "a"}\n{"split": " 1 ", "text": "b"}\n{"split": "0 ", "text": "c"}\n'
    )
    assert [row["text"] for row in rows(tmp_path / "a.jsonl:0")] == ["a", "c"]
    assert [row["text"] for row in rows(tmp_path / "a.jsonl:1")] == ["b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tsv", r"a.tsv:3 is of the split 'dev' and the rows before it are of 'train'.*a.tsv:train\+dev"),
        ("a.tsv:tset", r"a.tsv has no split 'tset'; it has dev, test, train. Did you mean 'test'"),
        ("b.tsv:dev", r"b.tsv:2 has no column 'split', so 'dev' cannot be chosen"),
        ("c.tsv:dev", r"c.tsv does not exist"),
    ],
)
def test_splits_are_not_mixed_by_accident(tmp_path: Path, name: str, message: str) -> None:
    table(tmp_path / "a.tsv", SPLITS)
    table(tmp_path / "b.tsv", "text\na\n")
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_a_file_whose_name_has_a_colon_is_itself(tmp_path: Path) -> None:
    file = table(tmp_path / "a.tsv:b.tsv", "text\na\n")
    assert rows(file) == [{"text": "a"}]


@pytest.mark.data
def test_stsb_holds_three_splits(data_folder: Path) -> None:
    counts = {split: len(rows(data_folder / f"stsb/stsbenchmark.tsv.gz:{split}")) for split in ("train", "dev", "test")}
    assert counts == {"train": 5749, "dev": 1500, "test": 1379}
