from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bertfast.errors import ConfigError, DataError
from bertfast.text.reference_tokenizer import NEEDED_TOKENS, ReferenceTokenizer, load, read_lines

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *("[PAD]", *NEEDED_TOKENS, "the", "bell", "##s", "ABC", ",", "[", "]", "^", "\u00a1"),
    *("\u6771", "\u4eac", "\U0002b820", "\ue000", "\U0001f600", "\u0378"),
    *LETTERS,
    *(f"##{letter}" for letter in [*LETTERS, "\u03c2", "\u03bf", "\ue000"]),
    *("\u03bf", "\u03b1", "##\u03c3"),
]
TOKENIZER = ReferenceTokenizer(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The bells, the BELL", "the bell ##s , the bell"),
        ("a\0b\x01c\ufffdd\u200be\xadf\ufeff", "a ##b ##c ##d ##e ##f"),  # removed, and no word ends there
        ("a\tb\rc\u00a0d\u3000e\u2028f\u2029g", "a b c d e f g"),
        ("a\vb\fc\x1cd\x1fe\x85f", "a ##b ##c ##d ##e ##f"),  # whitespace to Python, control characters here
        ("a\u6771\u4eacb", "a \u6771 \u4eac b"),
        ("a\U0002b820b", "a \U0002b820 b"),
        ("a^b[c]\u00a1", "a ^ b [ c ] \u00a1"),
        ("[MASK]", "[ m ##a ##s ##k ]"),
        ("\u00e0\u00c9\u1ea4\u0130", "a ##e ##a ##i"),
        ("a \u0301 b \u0301\u0302", "a b"),
        (
            "\u039f\u039f\u03a3 \u0391\u03a3a",
            "\u03bf ##\u03bf ##\u03c2 \u03b1 ##\u03c3 ##a",
        ),  # a final sigma, and one inside
        ("\ue000 a\ue000 \u0378", "\ue000 a ##\ue000 \u0378"),  # private use, and a character that is none
        ("\u00df \U0001f601", "[UNK] [UNK]"),
        (f"{'a' * 200} {'a' * 201}", " ".join(["a", *["##a"] * 199, "[UNK]"])),
        ("a\u0301" * 150, " ".join(["a", *["##a"] * 149])),  # counted without its accents
        (" \u0301 \u200b", ""),
    ],
)
def test_text_becomes_the_reference_s_pieces(text: str, expected: str) -> None:
    assert TOKENIZER.tokenize(text) == expected.split()


def test_a_cased_vocabulary_keeps_case_and_accents() -> None:
    cased = ReferenceTokenizer([*VOCABULARY, "\u00c9", "##\u0301"], lowercase=False)
    assert cased.tokenize("ABC abc \u00c9 a\u0301 The") == [
        "ABC",
        "a",
        "##b",
        "##c",
        "\u00c9",
        "a",
        "##\u0301",
        "[UNK]",
    ]


def test_a_vocabulary_file_is_stripped_and_its_first_mention_of_a_token_counts(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_bytes("[UNK]\r\n[CLS]\n [SEP]\t\n\n[MASK]\na\n[CLS]\n\u3000\nb".encode())
    assert load(file).vocabulary == ["[UNK]", "[CLS]", "[SEP]", "", "[MASK]", "a", "b"]


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\na\n")
    with pytest.raises(ConfigError, match=r"vocab.txt: the vocabulary lacks \[SEP\], \[MASK\]"):
        load(file)
    with pytest.raises(DataError, match="is a directory"):
        load(tmp_path)


def test_lines_end_at_the_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    content = "one\rtwo\r\n\x0bthree\x0c\x1c\x85\u2028\0\n\n\r\n four"
    lines = ["onetwo\n", "\x0bthree\x0c\x1c\x85\u2028\0\n", "\n", "\n", " four"]
    for end in (b"", b"\r"):
        file.write_bytes(content.encode() + end)
        assert list(read_lines(file)) == lines
    file.write_bytes(b"one\n\r")
    assert list(read_lines(file)) == ["one\n"]
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert list(read_lines(packed)) == lines
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="truncated or damaged"):
        list(read_lines(packed))


def test_bytes_that_are_no_utf8_are_left_out_with_one_warning(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("caf\u00e9 \u6771\n".encode() + "caf\u00e9\n".encode("latin-1") * 2 + b"\xe6\x9d\n")
    with pytest.warns(UserWarning, match="left out of 3 lines") as caught:
        assert list(read_lines(file)) == ["caf\u00e9 \u6771\n", "caf\n", "caf\n", "\n"]
    assert len(caught) == 1
