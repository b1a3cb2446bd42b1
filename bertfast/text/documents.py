"""Raw documents from plain text, directories, JSON lines and Parquet, each also as .gz, read as a stream."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from bertfast.errors import DataError, did_you_mean
from bertfast.text.files import DAMAGED, damaged, files_of, format_of, open_binary, reading

Boundary = Literal["blank-line", "file"]
MAX_DOCUMENT_CHARS = 1 << 20
MAX_JSON_LINE_BYTES = 1 << 25
_ROWS_AT_ONCE = 64
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
TEXT_COLUMNS = ("text", "content", "document", "body")


class Continuation(str):
    """A piece of a document that goes on where the piece before it ends."""

    __slots__ = ()


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
class FileRange:
    """A part of a file that holds whole documents and can be read without what comes before it.

    Attributes:
        start, end: bytes of a text file or of JSON lines, row groups of Parquet.
        size: bytes of text, or thereabouts.
    """

    path: Path
    start: int
    end: int
    size: int


def read_documents(inputs: Sequence[Path], text_format: TextFormat | None = None) -> Iterator[str]:
    """Yield documents in the order of the inputs; a directory's files come in sorted order.

    A document of over `MAX_DOCUMENT_CHARS` characters comes in several pieces, so that memory stays bounded: all but
    the first are `Continuation`s.

    Raises:
        DataError: a file is missing, empty, binary, wrongly encoded or truncated, or lacks the column.
    """
    for path in files_of(inputs):
        yield from read_file(path, text_format or TextFormat())


def in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts that are at hand as `read_documents` would yield them."""
    pieces = ([text] if len(text) <= MAX_DOCUMENT_CHARS else _within_limit([text]) for text in texts)
    return _not_blank(itertools.chain.from_iterable(pieces))


def read_file(path: Path, text_format: TextFormat) -> Iterator[str]:
    """`read_documents` of one file."""
    empty = True
    with reading(path):
        for document in _documents(path, text_format):
            empty = False
            yield document
    if empty:
        raise no_text(path)


def read_range(part: FileRange, text_format: TextFormat) -> Iterator[str]:
    """Yield the documents of a part of a file, as `read_documents` yields them among the others.

    Raises:
        DataError: as `read_documents`; a line is named by its number in the whole file.
    """
    with reading(part.path):
        try:
            yield from _documents(part.path, text_format, part, lines_before=min(part.start, 1))
        except DataError:
            if format_of(part.path) != "parquet":
                for _ in _documents(part.path, text_format, part, lines_before=_count_lines(part.path, part.start)):
                    pass
            raise


def read_long_document(stream: IO[bytes], path: Path) -> Iterator[str]:
    """Yield the pieces of the document of plain text that begins where the stream stands, and stop behind it."""
    start = stream.tell()

    def pieces(lines_before: int) -> Iterator[str]:
        lines = _lines(_fragments(stream, path, limit=MAX_DOCUMENT_CHARS, lines_before=lines_before))
        return _within_limit(text for text, _ in itertools.takewhile(lambda line: not line[1], lines))

    try:
        yield from _not_blank(pieces(min(start, 1)))
    except DataError:
        stream.seek(start)
        for _ in pieces(_count_lines(path, start)):
            pass
        raise


def no_text(path: Path) -> DataError:
    return DataError(f"{path} holds no text. Remove it from the inputs, or check how it was written.")


def decode_utf8(source: Path | str, number: int, raw: bytes, *, complete: bool = True) -> tuple[str, bytes]:
    """The text of a line without its end, and the bytes of a character that a cut at the limit left unfinished."""
    if b"\0" in raw:
        raise DataError(f"{source}:{number} holds a NUL byte: it is a binary file or UTF-16. Give UTF-8 text.")
    try:
        return raw.decode("utf-8").rstrip("\r\n"), b""
    except UnicodeDecodeError as error:
        if not complete and len(raw) - error.start < 4:
            return raw[: error.start].decode("utf-8"), raw[error.start :]
        raise DataError(
            f"{source}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}). "
            "Convert it first, such as with: iconv -f ISO-8859-1 -t UTF-8"
        ) from None


def decode_lines(
    stream: IO[bytes],
    source: Path | str,
    *,
    limit: int = -1,
    lines_before: int = 0,
    decode: Callable[..., tuple[str, bytes]] = decode_utf8,
) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a stream with \\n, \\r\\n and an optional BOM.

    Args:
        source: what errors call the stream.
        limit: bytes of a line that are refused; -1 for no limit.
        lines_before: lines of the source that come before the stream.
        decode: what makes text of a line.
    """
    for number, line, ends in _fragments(stream, source, limit=limit, lines_before=lines_before, decode=decode):
        if not ends:
            raise DataError(
                f"{source}:{number} is over {limit:,} bytes long, and a row must fit into memory. Cut it into several "
                "rows, or write it as plain text."
            )
        yield number, line


def _fragments(
    stream: IO[bytes],
    source: Path | str,
    *,
    limit: int,
    lines_before: int,
    decode: Callable[..., tuple[str, bytes]] = decode_utf8,
) -> Iterator[tuple[int, str, bool]]:
    """Yield (line number, text, whether the line ends with it); a line of over `limit` bytes comes in several."""
    number, tail, begins = lines_before, b"", True
    while True:
        try:
            raw = stream.readline(limit)
        except DAMAGED as error:
            raise damaged(source, number, error) from None
        if not raw and not tail:
            return
        number += begins
        ends = raw.endswith(b"\n") or limit < 0 or len(raw) < limit
        text, tail = decode(source, number, tail + raw, complete=ends)
        yield number, text.removeprefix("\ufeff") if begins and number == 1 else text, ends
        begins = ends


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, object) of a JSON-lines file; blank lines are passed over."""
    with open_binary(path) as stream:
        yield from parse_json_lines(decode_lines(stream, path, limit=MAX_JSON_LINE_BYTES), path)


def parse_json_lines(lines: Iterable[tuple[int, str]], source: Path | str) -> Iterator[tuple[int, dict[str, object]]]:
    """`read_json_lines` of lines that are at hand; `source` is what errors call them."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError alone
            raise DataError(
                f'{source}:{number} is not JSON ({error}). Write one whole object a line, such as {{"text": "..."}}.'
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{source}:{number} is a JSON {type(row).__name__}, and an object is needed.")
        if _SURROGATE.search(line) and not _is_text(json.dumps(row, ensure_ascii=False)):
            raise DataError(f"{source}:{number} holds half of a surrogate pair (\\ud800 to \\udfff). Remove it.")
        yield number, row


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(
    path: Path, groups: range | None = None, columns: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 1, row) of a Parquet file, or of some of its row groups, without holding a whole group.

    Args:
        columns: the first of these that is there is read alone; where none is, all are read.
    """
    with parquet_file(path) as table:
        groups = range(table.num_row_groups) if groups is None else groups
        number = sum(table.metadata.row_group(i).num_rows for i in range(groups.start))
        wanted = [name for name in columns if name in table.schema_arrow.names][:1] or None
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=list(groups), columns=wanted):
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
        except (pyarrow.ArrowException, *DAMAGED) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{path} is not a whole Parquet file: {reason}. Write or copy it again, or leave it out."
            ) from None


def _documents(
    path: Path, text_format: TextFormat, part: FileRange | None = None, lines_before: int = 0
) -> Iterator[str]:
    """The documents of a file or of a part of it, none of them blank."""
    kind, column = format_of(path), text_format.text_column
    if kind == "parquet":
        groups = range(part.start, part.end) if part else None
        rows = read_parquet(path, groups, (column,) if column else TEXT_COLUMNS)
        yield from _not_blank(_column(path, rows, column))
        return
    with open_binary(path) as stream:
        source = _bytes_of(stream, part) if part else stream
        if kind == "jsonl":
            lines = decode_lines(source, path, limit=MAX_JSON_LINE_BYTES, lines_before=lines_before)
            documents = _column(path, parse_json_lines(lines, path), column)
        else:
            fragments = _fragments(source, path, limit=MAX_DOCUMENT_CHARS, lines_before=lines_before)
            documents = _plain_text(_lines(fragments), text_format.boundary)
        yield from _not_blank(documents)


def _bytes_of(stream: IO[bytes], part: FileRange) -> IO[bytes]:
    stream.seek(part.start)
    block = stream.read(part.end - part.start)
    if len(block) < part.end - part.start:
        raise DataError(f"{part.path} became shorter while it was read. Start again when nothing writes to it.")
    return io.BytesIO(block)


def _count_lines(path: Path, end: int) -> int:
    """Lines that end before this byte."""
    count = 0
    with path.open("rb") as stream:
        while (left := end - stream.tell()) > 0:
            count += stream.read(min(left, 1 << 20)).count(b"\n")
    return count


def _lines(fragments: Iterable[tuple[int, str, bool]]) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether its line is blank) of lines with their ends, long lines in several fragments.

    White space that fills the first fragments of a long line is left out, for nobody can tell yet what follows.
    """
    blank = True
    for _, text, ends in fragments:
        blank = blank and not text.strip()
        if ends:
            yield text + "\n", blank
            blank = True
        elif not blank:
            yield text, False


def _plain_text(lines: Iterator[tuple[str, bool]], boundary: Boundary) -> Iterator[str]:
    if boundary == "file":
        yield from _within_limit(text for text, _ in lines)
        return
    for blank, document in itertools.groupby(lines, key=lambda line: line[1]):
        if not blank:
            yield from _within_limit(text for text, _ in document)


def _within_limit(fragments: Iterable[str]) -> Iterator[str]:
    """A document in pieces of up to `MAX_DOCUMENT_CHARS`, cut at line ends where there are any.

    Where they are cut depends on the text alone, and not on the fragments in which it comes.
    """
    kind: type[str] = str
    held: list[str] = []
    size = 0
    for fragment in fragments:
        held.append(fragment)
        size += len(fragment)
        if size > MAX_DOCUMENT_CHARS:
            text, start = "".join(held), 0
            while (limit := start + MAX_DOCUMENT_CHARS) < len(text):
                line_end = text.rfind("\n", start, limit + 1)
                yield kind(text[start : line_end if line_end >= 0 else limit])
                kind = Continuation
                start = line_end + 1 if line_end >= 0 else limit
            held, size = [text[start:]], len(text) - start
    if size:
        yield kind("".join(held).removesuffix("\n"))


def _not_blank(pieces: Iterable[str]) -> Iterator[str]:
    """Leave out pieces of white space; what then comes first of a document continues nothing."""
    begun = False
    for piece in pieces:
        goes_on = isinstance(piece, Continuation)
        if piece.strip():
            yield str(piece) if goes_on and not begun else piece
            begun = True
        elif not goes_on:
            begun = False


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
            yield from _within_limit([value])
