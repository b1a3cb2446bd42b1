"""Raw documents from plain text, directories, JSON lines and Parquet, each also as .gz, read as a stream."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, cast

from bertfast.errors import DataError, did_you_mean

Boundary = Literal["blank-line", "file"]
MAX_DOCUMENT_CHARS = 1 << 20
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
TEXT_COLUMNS = ("text", "content", "document", "body")


def read_documents(
    inputs: Sequence[Path], *, boundary: Boundary = "blank-line", text_column: str | None = None
) -> Iterator[str]:
    """Yield documents in the order of the inputs; a directory's files come in sorted order.

    A document of over `MAX_DOCUMENT_CHARS` characters comes in several pieces, so that memory stays bounded.

    Args:
        boundary: what ends a document of a plain-text file: a blank line, or the end of the file.
        text_column: the column of JSON lines and Parquet files; found by its usual names when not given.
    Raises:
        DataError: a file is missing, empty, binary, wrongly encoded or truncated, or lacks the column.
    """
    for path in _files(inputs):
        empty = True
        for document in _read_file(path, boundary, text_column):
            if document.strip():
                empty = False
                yield document
        if empty:
            raise DataError(f"{path} holds no text. Remove it from the inputs, or check how it was written.")


def format_of(path: Path) -> str:
    """A file's format by its name, without `.gz`: `jsonl`, `parquet`, `tsv`, `csv` or, for anything else, `text`."""
    suffix = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tsv": "tsv", ".csv": "csv"}
    return known.get(suffix, "text")


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, unpacking `.gz`; DataError where there is no such file."""
    if not path.exists():
        near = did_you_mean(path.name, [item.name for item in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise DataError(f"{path} does not exist.{near} Check the path.")
    if path.is_dir():
        raise DataError(f"{path} is a directory, and one file is needed here.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def read_lines(path: Path, *, limit: int = -1) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file with \\n, \\r\\n and an optional BOM.

    Args:
        limit: characters (bytes, in fact) after which an endless line is cut into pieces; -1 for no limit.
    """
    with open_binary(path) as stream:
        yield from decode_lines(stream, path, limit=limit)


def decode_lines(stream: IO[bytes], source: Path | str, *, limit: int = -1) -> Iterator[tuple[int, str]]:
    """`read_lines` of an open stream; `source` is what errors call it."""
    number, tail = 0, b""
    while True:
        try:
            raw = stream.readline(limit)
        except DAMAGED as error:
            raise DataError(f"{source} is truncated or damaged after line {number}: {error}") from None
        if not raw and not tail:
            return
        number += 1
        ends = raw.endswith(b"\n") or limit < 0 or len(raw) < limit
        line, tail = _decode(source, number, tail + raw, complete=ends)
        yield number, line.removeprefix("\ufeff") if number == 1 else line


def _decode(path: Path | str, number: int, raw: bytes, *, complete: bool) -> tuple[str, bytes]:
    """The text of a line, and the bytes of a character that a cut at the limit left unfinished."""
    if b"\0" in raw:
        raise DataError(f"{path}:{number} holds a NUL byte: it is a binary file or UTF-16. Give UTF-8 text.")
    try:
        return raw.decode("utf-8").rstrip("\r\n"), b""
    except UnicodeDecodeError as error:
        if not complete and len(raw) - error.start < 4:
            return raw[: error.start].decode("utf-8"), raw[error.start :]
        raise DataError(
            f"{path}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}). "
            "Convert it first, such as with: iconv -f ISO-8859-1 -t UTF-8"
        ) from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, object) of a JSON-lines file; blank lines are passed over."""
    return parse_json_lines(read_lines(path), path)


def parse_json_lines(lines: Iterable[tuple[int, str]], source: Path | str) -> Iterator[tuple[int, dict[str, object]]]:
    """`read_json_lines` of lines that are at hand; `source` is what errors call them."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f'{source}:{number} is not JSON ({error}). Write one whole object a line, such as {{"text": "..."}}.'
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{source}:{number} is a JSON {type(row).__name__}, and an object is needed.")
        if "\\u" in line and not _is_text(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{source}:{number} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text.")
        yield number, row


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 1, row) of a Parquet file, a row group at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install 'bertfast[train]'.") from None
    with open_binary(path) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowInvalid, *DAMAGED) as error:
            raise DataError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from None


def _files(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
            if not files:
                raise DataError(f"{path} is an empty directory.")
            yield from files
        else:
            yield path


def _read_file(path: Path, boundary: Boundary, text_column: str | None) -> Iterator[str]:
    kind = format_of(path)
    if kind == "jsonl":
        yield from _column(path, read_json_lines(path), text_column)
    elif kind == "parquet":
        yield from _column(path, read_parquet(path), text_column)
    else:
        yield from _plain_text(path, boundary)


def _plain_text(path: Path, boundary: Boundary) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in read_lines(path, limit=MAX_DOCUMENT_CHARS):
        ends = boundary == "blank-line" and not line.strip()
        if lines and (ends or size + len(line) > MAX_DOCUMENT_CHARS):
            yield "\n".join(lines)
            lines, size = [], 0
        if not ends:
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield "\n".join(lines)


def _column(path: Path, rows: Iterator[tuple[int, dict[str, object]]], column: str | None) -> Iterator[str]:
    for number, row in rows:
        name = column or next((name for name in TEXT_COLUMNS if name in row), None)
        if name is None or name not in row:
            wanted = column or " or ".join(TEXT_COLUMNS)
            raise DataError(
                f"{path}:{number} has no column '{wanted}'; it has {', '.join(map(str, row))}."
                f"{did_you_mean(column or 'text', map(str, row))} Name it with --text-column."
            )
        value = row[name]
        if not isinstance(value, str):
            raise DataError(f"{path}:{number} '{name}' is {type(value).__name__}, and text is needed.")
        yield value
