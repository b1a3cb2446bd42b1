"""Lines of labelled files in the encodings that spreadsheets and older tools write; a corpus has to be UTF-8."""

from __future__ import annotations

import codecs
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bertfast.errors import DataError
from bertfast.text.documents import decode_lines, decode_utf8
from bertfast.text.files import DAMAGED, damaged, open_binary

_REMEDY = "convert the file first: iconv -f ENCODING -t UTF-8"
_SHOWN = 60


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a file with \\n or \\r\\n.

    UTF-8 is read as it is, with a BOM or without. UTF-16 is read where a BOM names it, and lines that are not UTF-8 are
    read as Windows-1252, which holds the printable part of Latin-1: each with one warning that names the encoding.

    Raises:
        DataError: the file cannot be read, is truncated, or holds bytes that are in none of these encodings.
    """
    warned = False

    def decode(source: Path | str, number: int, raw: bytes, *, complete: bool) -> tuple[str, bytes]:
        nonlocal warned
        try:
            return decode_utf8(source, number, raw)
        except DataError:
            if b"\0" in raw or not raw.decode("utf-8", "ignore").isascii():  # UTF-8 after all, but damaged
                raise
        text = _windows_1252(source, number, raw)
        if not warned:
            warnings.warn(
                f"{source}:{number} is not UTF-8 and was read as Windows-1252: '{text[:_SHOWN]}'. So are all such "
                f"lines of the file. If that is not what it says, {_REMEDY}",
                stacklevel=2,
            )
            warned = True
        return text, b""

    with open_binary(path) as stream:
        yield from decode_lines(_without_utf16(stream, path), path, decode=decode)


def _windows_1252(source: Path | str, number: int, raw: bytes) -> str:
    try:
        return raw.decode("cp1252").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}:{number} is neither UTF-8 nor Windows-1252 (byte 0x{raw[error.start]:02x} at column "
            f"{error.start + 1}). If it is text, {_REMEDY}"
        ) from None


def _without_utf16(stream: IO[bytes], path: Path) -> IO[bytes]:
    """The stream, or what it holds in UTF-16 as UTF-8."""
    try:
        if stream.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            stream.seek(0)
            return stream
        stream.seek(0)
        text = stream.read().decode("utf-16")
    except DAMAGED as error:
        raise damaged(path, 0, error) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} begins as UTF-16 and is not ({error.reason} at byte {error.start}). Copy it again."
        ) from None
    warnings.warn(f"{path} is not UTF-8 and was read as UTF-16, which its first bytes name.", stacklevel=2)
    return io.BytesIO(text.encode("utf-8"))
