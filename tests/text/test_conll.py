from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from bertfast.errors import DataError
from bertfast.text.conll import Sentence, read_conll
from bertfast.text.tags import spans_of

EXPECTED = [(["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]), (["Peter"], ["B-PER"])]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, token_column: int = 1, tag_column: int | None = None) -> list[tuple[list[str], list[str] | None]]:
    return [(sentence.tokens, sentence.tags) for sentence in read_conll(path, token_column, tag_column)]


TABS = "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n\nPeter\tB-PER\n"


@pytest.mark.parametrize(
    "content",
    [
        TABS,
        TABS.replace("\n", "\r\n"),
        "\ufeff" + TABS,
        TABS.replace("\n\n", "\n\t\n"),
        TABS.replace("\n\n", "\n\n  \n\n") + "\n\n",
        TABS.replace("\t", " "),
        TABS.replace("\t", " NN I-NP ").replace("B-MISC", "B-MISC "),
        "-DOCSTART- -X- O O\n\n" + TABS.replace("\t", " X O "),
        "-DOCSTART-\tO\n\n" + TABS,
        TABS.replace("B-", "I-"),
        TABS.replace("B-", "S-"),
        "# newdoc id = a b\n# newpar\n" + TABS.replace("\n\n", "\n\n#newdoc\n# newpar id = p1\n"),
        "# sent_id = 7\n" + TABS.replace("Peter", "# text = Peter\nPeter"),
    ],
)
def test_every_way_of_writing_gives_the_same_sentences(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path / "a.conll", content)) == EXPECTED
    assert read(write(tmp_path / "a.conll.gz", gzip.compress(content.encode()))) == EXPECTED


def test_columns_are_counted_from_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.conllu", "1\tEU\tB-ORG\tx\n2\trejects\tO\ty\n")
    assert read(file, 2, 3) == [(["EU", "rejects"], ["B-ORG", "O"])]
    with pytest.raises(DataError, match=r"a.conllu:1 has 4 column\(s\), and column 5 is asked for"):
        read(file, 1, 5)


def test_lines_of_conll_u_that_are_several_words_or_none_are_left_out(tmp_path: Path) -> None:
    lines = "1-2\tdu\t_\n1\tde\tO\n2\tle\tO\n2.1\tvu\t_\n3\tParis\tB-loc\n"
    assert read(write(tmp_path / "a.conllu", lines), 2) == [(["de", "le", "Paris"], ["O", "O", "B-loc"])]
    assert read(write(tmp_path / "a.bio", "3-1\tO\n2.5\tO\n")) == [(["3-1", "2.5"], ["O", "O"])]


def test_a_number_sign_is_a_word_like_another(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", "#\tO\n#ann\tB-per\n# = x\tO\n")) == [
        (["#", "#ann", "# = x"], ["O", "B-per", "O"])
    ]
    assert read(write(tmp_path / "b", "# O\n#ann B-per\n")) == [(["#", "#ann"], ["O", "B-per"])]


def test_words_keep_their_spaces_between_tabs(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", "New York\tB-loc\na\u00a0b\tO\n")) == [(["New York", "a\u00a0b"], ["B-loc", "O"])]
    assert read(write(tmp_path / "b", "a\u00a0b  O\n")) == [(["a\u00a0b"], ["O"])]


def test_words_alone_have_no_tags(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "EU\nrejects\n\nPeter\n")
    assert list(read_conll(file)) == [
        Sentence(["EU", "rejects"], None, f"{file}:1"),
        Sentence(["Peter"], None, f"{file}:4"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\tB-ORG\nrejects\n", r"a.conll:2 has 1 column\(s\) \('rejects'\), and line 1 has 2 \('EU B-ORG'\)"),
        ("EU B-ORG\nNew York B-LOC\n", r"a.conll:2 has 3 column\(s\)"),
        ("EU\tB-ORG\n\n\tO\n", r"a.conll:3 has no word in column 1"),
        ("EU\tORG\n", r"a.conll:1 has 'ORG' where a tag should be"),
        ("EU\tB-ORG\nrejects\t\n", r"a.conll:2 has '' where a tag should be"),
        (b"EU\tO\ncaf\x81\tO\n", r"a.conll:2 is neither UTF-8 nor Windows-1252"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.conll", content))


@pytest.mark.data
def test_the_real_files_are_read_whole(data_folder: Path) -> None:
    for name, sentences, entities in (("train", 3394, 1975), ("dev", 1009, 836), ("test", 1287, 1079)):
        found = list(read_conll(data_folder / "ner" / f"{name}.conll"))
        labels = Counter(span.label for sentence in found for span in spans_of(sentence.tags or []))
        assert (len(found), labels.total(), len(labels)) == (sentences, entities, 6)
