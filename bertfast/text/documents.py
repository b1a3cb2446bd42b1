"""Raw documents from plain text, directories, JSON lines and Parquet, each also as .gz, read as a stream."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from bertfast.errors import DataError, did_you_mean

Boundary = Literal["blank-line", "file"]
MAX_DOCUMENT_CHARS = 1 << 20
MAX_JSON_LINE_BYTES = 1 << 25
_ROWS_AT_ONCE = 64
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
TEXT_COLUMNS = ("text", "content", "document", "body")


@dataclass(frozen=True)
class TextFormat:
    """How documents lie in files.

    Attributes:
        boundary: what ends a document of a plain-text file: a blank line, or the end of the file.
        text_column: the column of JSON lines and Parquet files; found by its usual names when not given.
    """

    boundary: Boundary = "blank-line"
    text_column: str | None = None


@dataclass(frozen=True)
class Span:
    """A part of a file that holds whole documents and can be read without what comes before it.

    Attributes:
        start, end: bytes of a text file or of JSON lines, row groups of Parquet.
        size: bytes of text, or thereabouts.
    """

    path: Path
    start: int
    end: int
    size: int


def read_documents(
    inputs: Sequence[Path], *, boundary: Boundary = "blank-line", text_column: str | None = None
) -> Iterator[str]:
    """Yield documents in the order of the inputs; a directory's files come in sorted order.

    A document of over `MAX_DOCUMENT_CHARS` characters comes in several pieces, so that memory stays bounded.

    Args:
        boundary, text_column: see `TextFormat`.
    Raises:
        DataError: a file is missing, empty, binary, wrongly encoded or truncated, or lacks the column.
    """
    for path in files_of(inputs):
        yield from read_file(path, TextFormat(boundary, text_column))


def read_file(path: Path, text_format: TextFormat) -> Iterator[str]:
    """`read_documents` of one file."""
    empty = True
    for document in _documents(path, text_format):
        empty = False
        yield document
    if empty:
        raise no_text(path)


def read_span(span: Span, text_format: TextFormat) -> Iterator[str]:
    """Yield the documents of a part of a file, as `read_documents` yields them among the others.

    Raises:
        DataError: as `read_documents`; a line is named by its number in the whole file.
    """
    try:
        yield from _documents(span.path, text_format, span, lines_before=min(span.start, 1))
    except DataError:
        if format_of(span.path) != "parquet":
            for _ in _documents(span.path, text_format, span, lines_before=_count_lines(span.path, span.start)):
                pass
        raise


def read_long_document(stream: IO[bytes], path: Path) -> Iterator[str]:
    """Yield the pieces of the document of plain text that begins where the stream stands, and stop behind it."""
    lines = decode_lines(stream, path, limit=MAX_DOCUMENT_CHARS, lines_before=min(stream.tell(), 1))
    yield from _within_limit(line for _, line in itertools.takewhile(lambda item: item[1].strip(), lines))


def no_text(path: Path) -> DataError:
    return DataError(f"{path} holds no text. Remove it from the inputs, or check how it was written.")


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


def decode_lines(
    stream: IO[bytes], source: Path | str, *, limit: int = -1, whole: bool = False, lines_before: int = 0
) -> Iterator[tuple[int, str]]:
    """`read_lines` of an open stream.

    Args:
        source: what errors call the stream.
        whole: whether a line that exceeds the limit is refused, and not cut.
        lines_before: lines of the source that come before the stream.
    """
    number, tail = lines_before, b""
    while True:
        try:
            raw = stream.readline(limit)
        except DAMAGED as error:
            raise DataError(f"{source} is truncated or damaged after line {number}: {error}") from None
        if not raw and not tail:
            return
        number += 1
        ends = raw.endswith(b"\n") or limit < 0 or len(raw) < limit
        if whole and not ends:
            raise DataError(
                f"{source}:{number} is over {limit:,} bytes long, and a row must fit into memory. Cut it into several "
                "rows, or write it as plain text."
            )
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
    with open_binary(path) as stream:
        yield from parse_json_lines(decode_lines(stream, path, limit=MAX_JSON_LINE_BYTES, whole=True), path)


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
        if _SURROGATE.search(line) and not _is_text(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{source}:{number} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text.")
        yield number, row


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(path: Path, groups: range | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 1, row) of a Parquet file, or of some of its row groups, without holding a whole group."""
    with parquet_file(path) as table:
        groups = range(table.num_row_groups) if groups is None else groups
        number = sum(table.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=list(groups)):
            for row in batch.to_pylist():
                number += 1
                yield number, row


@contextlib.contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`; DataError where the file is not whole or pyarrow is not there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install 'bertfast[train]'.") from None
    with open_binary(path) as stream:
        try:
            # With pre_buffer, its default, a whole row group would be read before the first row comes.
            yield pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        except (pyarrow.ArrowInvalid, *DAMAGED) as error:
            raise DataError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from None


def files_of(inputs: Iterable[Path]) -> Iterator[Path]:
    """The inputs with each directory replaced by the files in it, in sorted order; hidden ones are left out."""
    for path in inputs:
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file() and not item.name.startswith("."))
            if not files:
                raise DataError(f"{path} is an empty directory.")
            yield from files
        else:
            yield path


def _documents(path: Path, text_format: TextFormat, span: Span | None = None, lines_before: int = 0) -> Iterator[str]:
    """The documents of a file or of a part of it, none of them blank."""
    kind = format_of(path)
    if kind == "parquet":
        rows = read_parquet(path, range(span.start, span.end) if span else None)
        yield from filter(str.strip, _column(path, rows, text_format.text_column))
        return
    with open_binary(path) as stream:
        source = _bytes_of(stream, span) if span else stream
        if kind == "jsonl":
            lines = decode_lines(source, path, limit=MAX_JSON_LINE_BYTES, whole=True, lines_before=lines_before)
            documents = _column(path, parse_json_lines(lines, path), text_format.text_column)
        else:
            lines = decode_lines(source, path, limit=MAX_DOCUMENT_CHARS, lines_before=lines_before)
            documents = _plain_text((line for _, line in lines), text_format.boundary)
        yield from filter(str.strip, documents)


def _bytes_of(stream: IO[bytes], span: Span) -> IO[bytes]:
    stream.seek(span.start)
    block = stream.read(span.end - span.start)
    if len(block) < span.end - span.start:
        raise DataError(f"{span.path} became shorter while it was read. Start again when nothing writes to it.")
    return io.BytesIO(block)


def _count_lines(path: Path, end: int) -> int:
    """Lines that end before this byte."""
    count = 0
    with path.open("rb") as stream:
        while (left := end - stream.tell()) > 0:
            count += stream.read(min(left, 1 << 20)).count(b"\n")
    return count


def _plain_text(lines: Iterator[str], boundary: Boundary) -> Iterator[str]:
    if boundary == "file":
        yield from _within_limit(lines)
        return
    for blank, document in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield from _within_limit(document)


def _within_limit(lines: Iterable[str]) -> Iterator[str]:
    """The lines as one document, or as several where they are more than `MAX_DOCUMENT_CHARS`."""
    held: list[str] = []
    size = 0
    for line in lines:
        if held and size + len(line) > MAX_DOCUMENT_CHARS:
            yield "\n".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line) + 1
    if held:
        yield "\n".join(held)


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
        if len(value) <= MAX_DOCUMENT_CHARS:
            yield value
        else:
            yield from _within_limit(_short_lines(value))


def _short_lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        for start in range(0, max(1, len(line)), MAX_DOCUMENT_CHARS):
            yield line[start : start + MAX_DOCUMENT_CHARS]
