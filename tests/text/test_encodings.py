"""Labelled files in other encodings than UTF-8."""

from __future__ import annotations

import codecs
import gzip
import warnings
from pathlib import Path

import pytest

from bertfast.errors import DataError
from bertfast.text.encodings import read_lines

TEXT = "caf\u00e9\r\n\u20ac 5\n"
LINES = [(1, "caf\u00e9"), (2, "\u20ac 5")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_without_a_word(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.tsv").write_bytes(TEXT.encode(encoding))
    assert list(read_lines(tmp_path / "a.tsv")) == LINES


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_utf16_is_named(tmp_path: Path, mark: bytes, name: str) -> None:
    raw = mark + TEXT.encode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be")
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.warns(UserWarning, match=rf"{name} is not UTF-8 and was read as UTF-16"):
        assert list(read_lines(tmp_path / name)) == LINES


def test_windows_1252_is_named_once_with_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"plain\n" + TEXT.encode("cp1252") + "na\u00efve\n".encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = list(read_lines(tmp_path / "a.tsv"))
    assert lines == [(1, "plain"), (2, "caf\u00e9"), (3, "\u20ac 5"), (4, "na\u00efve")]
    (warning,) = caught
    assert "a.tsv:2 is not UTF-8 and was read as Windows-1252: 'caf\u00e9'" in str(warning.message)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"ok\n\x81\x82\n", r"a.tsv:2 is neither UTF-8 nor Windows-1252 \(byte 0x81 at column 1\).*iconv"),
        ("caf\u00e9 ".encode() + b"\xe9\n", r"a.tsv:1 is not UTF-8 \(byte 0xe9"),
        ("ok".encode("utf-16-le"), "a.tsv:1 holds a NUL byte: it is a binary file or UTF-16"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0", "a.tsv begins as UTF-16 and is not"),
    ],
)
def test_what_is_in_no_encoding_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a.tsv").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        list(read_lines(tmp_path / "a.tsv"))


@pytest.mark.parametrize("cut", [5, 40])
def test_an_archive_that_was_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(TEXT.encode() * 1000)[:cut])
    with pytest.raises(DataError, match="a.tsv.gz is truncated or damaged after line"):
        list(read_lines(tmp_path / "a.tsv.gz"))
