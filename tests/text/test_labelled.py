from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bertfast.errors import DataError
from bertfast.text.labelled import Columns, Example, evenly_spread, label_ids, label_names, label_number, read_examples

TEXTS, GOLDS = ["a film", 'it "works"'], ["1", "0"]
ODD_TEXTS = [
    "",
    " ",
    "x" * 100_000,
    "\U0001f9d1\u200d\U0001f680 \U0001f1ea\U0001f1fa",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u4e1c\u4eac",
    "e\u0301\u0323",
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def questions(examples: list[Example]) -> list[Any]:
    return [(dict(example.request), example.gold) for example in examples]


def labelled(*golds: str) -> list[Example]:
    return [Example({"text": ""}, gold, "dev.csv:2") for gold in golds]


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    tsv = 'sentence\tlabel\r\na film\t1 \r\nit "works"\t0\r\n'
    rows = zip(TEXTS, GOLDS, strict=True)
    lines = "".join(json.dumps({"text": text, "label": int(label)}) + "\n" for text, label in rows)
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": [1, 0]}), table)
    files = [
        write(tmp_path / "rows.tsv", tsv),
        write(tmp_path / "rows.tsv.gz", gzip.compress(tsv.encode())),
        write(tmp_path / "rows.csv", '\ufefftext,category\na film,1\n"it ""works""",0\n'),
        write(tmp_path / "rows.jsonl", lines),
        table,
    ]
    for file in files:
        examples = read_examples(file)
        assert questions(examples) == [({"text": TEXTS[0]}, "1"), ({"text": TEXTS[1]}, "0")]
        first = 1 if file == table else 2 - (file.suffix == ".jsonl")
        assert examples[0].where == f"{file}:{first}"


def test_csv_fields_may_span_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", 'text,label\n"two\nlines",a\nb,c\n')
    assert [row.request["text"] for row in read_examples(file)] == ["two\nlines", "b"]


@pytest.mark.parametrize(
    ("text", "pair"),
    [("premise", "hypothesis"), ("sentence1", "sentence2"), ("question", "context"), ("question", "sentence")],
)
def test_pairs_are_found_by_their_usual_names(tmp_path: Path, text: str, pair: str) -> None:
    file = write(tmp_path / "rows.tsv", f"index\t{text}\t{pair}\tgold_label\n0\ta\tb\tneutral\n1\tc\td\t-\n")
    with pytest.warns(UserWarning, match="1 rows without a gold label"):
        assert questions(read_examples(file)) == [({"text": "a", "pair": "b"}, "neutral")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "utterance,intent\nhello,greet\n")
    named = Columns(text="utterance", label="intent")
    assert questions(read_examples(file, named)) == [({"text": "hello"}, "greet")]


def test_the_label_is_never_read_as_the_second_text(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "question,answer\nwho,me\nwhen,now\n")
    examples = read_examples(file, Columns(label="answer"))
    assert [(row.request, row.gold) for row in examples] == [({"text": "who"}, "me"), ({"text": "when"}, "now")]


def test_a_text_brings_the_second_of_its_usual_pair(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,question,answer,label\na,who,me,1\n")
    assert questions(read_examples(file, Columns(text="question"))) == [({"text": "who", "pair": "me"}, "1")]
    assert questions(read_examples(file, Columns(text="text"))) == [({"text": "a"}, "1")]


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_where_no_labels_are_needed_every_row_comes_with_its_id(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"rows.{kind}"
    columns = {"id": ["r1", "r2", "r3"], "text": ["a", "b", "c"], "gold_label": ["-", "", "x"]}
    if kind == "tsv":
        lines = ["\t".join(columns), *("\t".join(row) for row in zip(*columns.values(), strict=True))]
        write(file, "\n".join(lines) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert questions(read_examples(file, labels_needed=False)) == [
        ({"text": "a", "id": "r1"}, None),
        ({"text": "b", "id": "r2"}, None),
        ({"text": "c", "id": "r3"}, "x"),
    ]


def test_labels_of_another_kind_are_counted_where_none_is_needed(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,label\na,good\nb,2\nc,bad\n")
    with pytest.warns(UserWarning, match=r"2 of 3 labels are passed over.*rows.csv:2: 'label' is 'good', and a number"):
        examples = read_examples(file, labels_needed=False, gold=label_number)
    assert [example.gold for example in examples] == [None, 2.0, None]
    with pytest.raises(DataError, match=r"rows.csv:2: 'label' is 'good'.*--label-column"):
        read_examples(file, gold=label_number)


def test_an_id_that_no_answer_can_be_joined_by_stays_behind(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", '{"id": null, "text": "a", "label": 1}\n{"id": 7, "text": "b", "label": 0}\n')
    assert [row.request for row in read_examples(file)] == [{"text": "a"}, {"text": "b", "id": 7}]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("sentense,label\na,1\n", Columns(), r"none of the columns text, sentence.*it has sentense, label.*'sentense'"),
        ("text,labl\na,1\n", Columns(), r"none of the columns label.*Did you mean 'labl'.*--label-column"),
        ("text,label\na,1\n", Columns(text="txt"), r"no column 'txt'; it has text, label. Did you mean 'text'"),
        ("text,label\na,1,2\n", Columns(), r"rows.csv:2 has 3 fields and the header has 2"),
        ("text,label\na,\n", Columns(), r"rows.csv:2 has no 'label'. Give every row its label"),
        ('text,label\n"a,1\n', Columns(), r"not well-formed CSV.*quote"),
        ("text,label\n", Columns(), "has no rows"),
        ("text,gold_label\na,-\n", Columns(), "all 1 rows carry the label '-'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, columns: Columns, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(write(tmp_path / "rows.csv", content), columns)


def test_a_minus_is_a_label_like_another_outside_gold_label(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,label\na,+\nb,-\n")
    assert label_names(read_examples(file)) == ("+", "-")


def test_a_second_text_that_comes_late_is_not_dropped(tmp_path: Path) -> None:
    rows = '{"text": "a", "label": "x"}\n{"text": "a", "pair": "b", "label": "y"}\n'
    with pytest.raises(DataError, match=r"rows.jsonl:2 has a 'pair' and the first row has none"):
        read_examples(write(tmp_path / "rows.jsonl", rows))


def test_long_cells_and_empty_archives(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,label\n" + "x" * 200_000 + ",a\n")
    assert len(read_examples(file)[0].request["text"]) == 200_000
    for name in ("rows.tsv.gz", "rows.csv.gz"):
        with pytest.raises(DataError, match="has no rows"):
            read_examples(write(tmp_path / name, gzip.compress(b"")))


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows.jsonl:1 holds half of a surrogate pair"):
        read_examples(write(tmp_path / "rows.jsonl", '{"text": "\\ud83d", "label": "a"}\n'))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labelled rows come as \.jsonl, \.parquet, \.tsv, \.csv"):
        read_examples(write(tmp_path / "rows.txt", "hello"))


def test_labels_are_ordered_as_people_would() -> None:
    assert label_names(labelled("10", "2", "1")) == ("1", "2", "10")
    assert label_names(labelled("0.5", "-1", "10")) == ("-1", "0.5", "10")
    assert label_names(labelled("nan", "inf", "1")) == ("1", "inf", "nan")
    assert label_names(labelled("neutral", "entailment")) == ("entailment", "neutral")
    with pytest.raises(DataError, match="at least 2"):
        label_names(labelled("1"))


def test_many_labels_are_not_all_shown() -> None:
    names = [f"label number {number}" for number in range(77)]
    with pytest.raises(DataError, match=r"knows label number 0, .* \.\.\. \(77 labels\)\.") as caught:
        label_ids(labelled("another"), names)
    assert len(str(caught.value)) < 400


def test_a_label_that_training_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"dev.csv:2 has the label 'netural'.*Did you mean 'neutral'"):
        label_ids(labelled("netural"), ("entailment", "neutral"))


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ('" 1 "', "1"),
        ("true", "true"),
        ("false", "false"),
        ("0.5", "0.5"),
        ('"a\\u00a0"', "a"),
    ],
)
def test_a_label_is_the_same_whatever_it_is_written_as(tmp_path: Path, label: str, text: str) -> None:
    file = write(tmp_path / "rows.jsonl", f'{{"text": "a", "label": {label}}}\n')
    assert read_examples(file)[0].gold == text


@pytest.mark.parametrize("label", ["null", '" "', "NaN", '["a"]', '{"a": 1}'])
def test_a_row_without_its_one_label_is_named(tmp_path: Path, label: str) -> None:
    file = write(tmp_path / "rows.jsonl", f'{{"text": "a", "label": "x"}}\n{{"text": "a", "label": {label}}}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2(:| has no) 'label'"):
        read_examples(file)


def test_a_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", '{"text": 5, "label": "x"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'text' is int, and text is needed"):
        read_examples(file)


@pytest.mark.parametrize("first", ["a film,1", "0,a film", f"{'long ' * 20},neg"])
def test_a_file_without_a_header_is_told_apart_from_one_with_odd_names(tmp_path: Path, first: str) -> None:
    with pytest.raises(DataError, match="looks like a row of data: give the file a first row with the names"):
        read_examples(write(tmp_path / "rows.csv", f"{first}\nb,0\n"))
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path / "rows.csv", "utterance,number of correct responses (out of 100)\nb,0\n"))
    assert "looks like" not in str(caught.value)


def test_a_column_of_nothing_is_the_wrong_one(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", "text,body,label\n,a,1\n ,b,0\n")
    with pytest.raises(DataError, match=r"'text' is empty in all 2 rows. Name another with --text-column"):
        read_examples(file)
    assert len(read_examples(file, Columns(text="body"))) == 2


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_texts_of_any_length_and_script_come_as_they_are(tmp_path: Path, kind: str) -> None:
    rows = {
        "tsv": "text\tlabel\n" + "".join(f"{text}\t1\n" for text in ODD_TEXTS),
        "csv": "text,label\n" + "".join(f'"{text}",1\n' for text in ODD_TEXTS),
        "jsonl": "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in ODD_TEXTS),
    }
    file = write(tmp_path / f"rows.{kind}", rows[kind])
    with pytest.warns(UserWarning, match=r"'text' is empty in 2 of 7 rows, the first at .*:\d+. They are kept"):
        assert [example.request["text"] for example in read_examples(file)] == ODD_TEXTS


@pytest.mark.data
def test_the_real_files_are_read_whole(data_folder: Path) -> None:
    expected = {
        "sst2/train.tsv": (67349, 2),
        "sst2/dev.tsv": (872, 2),
        "nli/train.jsonl": (44983, 3),
        "nli/mnli_dev_matched.tsv": (9815, 3),
        "banking77/train.csv": (10003, 77),
        "banking77/test.csv": (3080, 77),
    }
    for name, (rows, labels) in expected.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows without a gold label
            examples = read_examples(data_folder / name)
        assert (len(examples), len(label_names(examples))) == (rows, labels)


def test_a_part_of_the_rows_is_spread_over_all_of_them() -> None:
    assert evenly_spread(872, 500)[0] == 0
    assert evenly_spread(872, 500)[-1] == 871
    assert len(set(evenly_spread(872, 500))) == 500
    assert evenly_spread(3, 10) == [0, 1, 2]
