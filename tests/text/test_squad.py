from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.errors import DataError
from bertfast.text.labelled import Columns
from bertfast.text.squad import Span, read_squad

CONTEXT = "The river crosses the old town. The river waits."


def answer(text: str, start: int) -> dict[str, Any]:
    return {"text": text, "answer_start": start}


def question(*answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"question": "What waits?", "id": "q1", "answers": list(answers)} | more


def squad(*questions: dict[str, Any], context: Any = CONTEXT) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def write(path: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz", "dev"])
def test_questions_come_with_their_context_answers_and_place(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, squad(question(answer("river", 36), answer("The river", 32)), question()))
    first, second = read_squad(file)
    assert first.request == {"question": "What waits?", "context": CONTEXT, "id": "q1"}
    assert first.gold == (Span("river", 36), Span("The river", 32))
    assert first.where == f"{file}: data[0].paragraphs[0].qas[0]"
    assert second.gold == ()


def test_a_byte_order_mark_and_crlf_are_passed_over(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(squad(question(answer("river", 4))), indent=1).replace("\n", "\r\n")
    assert read_squad(write(tmp_path / "a.json", text))[0].gold == (Span("river", 4),)


def test_an_impossible_question_has_no_answer(tmp_path: Path) -> None:
    impossible = question(is_impossible=True, plausible_answers=[answer("river", 4)])
    examples = read_squad(write(tmp_path / "a.json", squad(impossible, question())))
    assert [example.gold for example in examples] == [(), ()]


def test_a_blank_answer_is_counted_and_makes_no_question_impossible(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", squad(question(answer(" ", 3)), question(answer("", 0), answer("river", 4))))
    with pytest.warns(UserWarning, match="2 of 3 answers are blank or .* and 2 are left out"):
        first, second = read_squad(file)
    assert first.gold == (Span(" ", None),)
    assert second.gold == (Span("", None), Span("river", 4))


def test_rows_are_of_one_split(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"split": "train"}, ROWS[1] | {"split": "dev"}]
    write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [example.request["id"] for example in read_squad(tmp_path / "rows.jsonl:dev")] == [8]


def test_the_fields_of_squad_s_own_json_have_fixed_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.json is SQuAD's own JSON.*Leave the options that name columns out"):
        read_squad(write(tmp_path / "a.json", squad(question())), Columns(label="answers"))


ROWS = [
    {"id": 7, "question": "What?", "context": CONTEXT, "answers": {"text": ["river"], "answer_start": [4]}},
    {"id": 8, "question": "Who?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    {"id": 9, "question": "Who?", "context": CONTEXT, "answers": [answer("town", 26)]},
]


def test_rows_are_read_as_json_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    examples = read_squad(file)
    assert [example.gold for example in examples] == [(Span("river", 4),), (), (Span("town", 26),)]
    assert [example.request["id"] for example in examples] == [7, 8, 9]
    assert examples[1].where == f"{file}:2"


def test_rows_are_read_from_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), tmp_path / "rows.parquet")
    assert [example.gold for example in read_squad(tmp_path / "rows.parquet")] == [(Span("river", 4),), ()]


def test_columns_of_rows_may_be_named(tmp_path: Path) -> None:
    row = {"q": "What?", "passage": CONTEXT, "gold": [answer("river", 4)]}
    columns = Columns(text="q", pair="passage", label="gold")
    (example,) = read_squad(write(tmp_path / "rows.jsonl", json.dumps(row)), columns)
    assert (example.request, example.gold) == ({"question": "What?", "context": CONTEXT}, (Span("river", 4),))


MISALIGNED = [answer("river", 4), answer("river", 30), answer("river", 9), answer("river", -5), answer("bridge", 3)]


def test_misaligned_answers_are_moved_to_the_nearest_occurrence(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", squad(question(*MISALIGNED, answer("river", 9999))))
    with pytest.warns(UserWarning, match=r"5 of 6 answers .* 4 were found elsewhere .* and 1 are left out") as caught:
        (example,) = read_squad(file)
    assert len(caught) == 1
    assert [span.start for span in example.gold] == [4, 36, 4, 4, None, 36]
    assert [span.text for span in example.gold] == ["river"] * 4 + ["bridge", "river"]


def test_misaligned_answers_are_dropped_from_training_or_refused_as_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", squad(question(*MISALIGNED)))
    with pytest.warns(UserWarning, match="4 of 5 answers .* 0 were found elsewhere .* and 4 are left out"):
        (example,) = read_squad(file, misaligned="drop")
    assert [span.start for span in example.gold] == [4, None, None, None, None]
    message = r"a.json: data\[0\].paragraphs\[0\].qas\[0\]: answer_start 30 does not point at 'river'"
    with pytest.raises(DataError, match=message):
        read_squad(file, misaligned="refuse")


@given(context=st.text("ab ", max_size=30), text=st.text("ab", min_size=1, max_size=3), start=st.integers(-5, 40))
def test_what_is_moved_stands_nearest(context: str, text: str, start: int, tmp_path_factory: Any) -> None:
    file = write(tmp_path_factory.getbasetemp() / "nearest.json", squad(question(answer(text, start)), context=context))
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    if start in places:
        assert read_squad(file)[0].gold == (Span(text, start),)
        return
    with pytest.warns(UserWarning, match="1 of 1 answers"):
        ((_, found),) = read_squad(file)[0].gold
    assert (found in places) if places else (found is None)
    if found is not None:
        assert abs(found - start) == min(abs(place - start) for place in places)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"data": [', r"a.json is not whole JSON \(.*line 1 column"),
        ('{"a": 1}\n{"a": 2}', r"Extra data: line 2 column 1.*name it .jsonl"),
        ([], "a.json is list, and an object with 'data' is needed"),
        ({"date": []}, r"a.json has no 'data'; it has date\. Add it"),
        ({"data": {}}, "a.json: 'data' is dict, and a list is needed"),
        ({"data": []}, "a.json has no questions"),
        ({"data": [{}]}, r"data\[0\] has no 'paragraphs'; it has nothing"),
        (squad("q"), r"data\[0\].paragraphs\[0\].qas\[0\] is str, and an object with 'question' is needed"),  # type: ignore[arg-type]
        (squad(question(question=None)), r"qas\[0\]: 'question' is NoneType, and a string is needed"),
        (squad(question(), context=3), r"paragraphs\[0\]: 'context' is int, and a string is needed"),
        (
            squad(question(), context="a\ud800"),
            r"paragraphs\[0\]: 'context' holds half of a surrogate pair at char.* 1",
        ),
        (squad(question(answers="river")), r"qas\[0\].answers is str, and a list of answers is needed"),
        (squad(question({"text": "river"})), r"qas\[0\].answers\[0\] has no 'answer_start'; it has text"),
        (squad(question(answer("river", "4"))), r"answers\[0\]: 'answer_start' is str, and an integer is needed"),  # type: ignore[arg-type]
        (squad(question(answers={"text": ["a"], "answer_start": []})), r"answers has 1 texts and 0 starts"),
        (squad(question(), {"question": "a"}), r"qas\[1\] has no 'answers', and so have 1 of 2 questions"),
    ],
)
def test_damage_is_named_with_the_way_to_it(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_squad(write(tmp_path / "a.json", value))


def test_damage_in_rows_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", json.dumps(ROWS[0]) + '\n{"question": "What?"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2 has no 'context'; it has question"):
        read_squad(file)


def test_questions_without_answers_are_read_where_none_are_needed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", squad({"question": "What?", "id": "q"}))
    assert read_squad(file, answers_needed=False)[0].gold is None


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"data": "caf\u00e9"}'.encode("latin-1"))
    with (
        pytest.warns(UserWarning, match=r"a.json:1 is not UTF-8 and was read as Windows-1252"),
        pytest.raises(DataError, match="'data'"),
    ):
        read_squad(tmp_path / "a.json")
