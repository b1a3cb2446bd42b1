"""The inputs of a corpus in chunks of a bounded size, which do not depend on how many workers take them.

A chunk names what is to be read wherever a file can be entered in the middle (plain text, JSON lines, row groups
of Parquet), so that whoever works on it reads it too. It carries the text itself where only one reader can get at
it: `.gz`, row groups that are too large, a document longer than a chunk, and texts that come from Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bertfast.text.documents import (
    MAX_JSON_LINE_BYTES,
    Span,
    TextFormat,
    files_of,
    format_of,
    no_text,
    open_binary,
    parquet_file,
    read_file,
    read_long_document,
    read_span,
)

CHUNK_BYTES = 1 << 22
_LARGEST_ROW_GROUP = 1 << 25
_LOOK_BACK = 1 << 16
_LINE_END = re.compile(rb".*\n", re.DOTALL)
_BLANK_LINE = re.compile(rb".*\n[ \t\r]*\n", re.DOTALL)


@dataclass(frozen=True)
class Chunk:
    """Parts of files and texts, in order.

    Attributes:
        size: bytes of the parts and characters of the texts.
    """

    pieces: tuple[Span | str, ...]
    size: int

    def texts(self, text_format: TextFormat) -> Iterator[str]:
        """Read the documents."""
        for piece in self.pieces:
            if isinstance(piece, str):
                yield piece
            else:
                yield from read_span(piece, text_format)


def chunks_of(pieces: Iterable[Span | str]) -> Iterator[Chunk]:
    """Gather pieces to chunks of up to `CHUNK_BYTES`, or of one piece that is larger."""
    held: list[Span | str] = []
    size = 0
    for piece in pieces:
        more = len(piece) if isinstance(piece, str) else piece.size
        if held and size + more > CHUNK_BYTES:
            yield Chunk(tuple(held), size)
            held, size = [], 0
        held.append(piece)
        size += more
    if held:
        yield Chunk(tuple(held), size)


def pieces_of(inputs: Sequence[Path], text_format: TextFormat) -> Iterator[Span | str]:
    """Cut files and directories where documents end; only the surroundings of the cuts are read.

    Raises:
        DataError: a file is missing or holds no text.
    """
    for path in files_of(inputs):
        kind = format_of(path)
        if path.suffix == ".gz":
            yield from read_file(path, text_format)
        elif kind == "parquet":
            yield from _row_groups(path, text_format)
        elif (
            kind != "jsonl" and text_format.boundary == "file" and path.is_file() and path.stat().st_size > CHUNK_BYTES
        ):
            yield from read_file(path, text_format)
        else:
            yield from _spans(path, text_format, lines=kind == "jsonl")


def _spans(path: Path, text_format: TextFormat, *, lines: bool) -> Iterator[Span | str]:
    start = 0
    with open_binary(path) as stream:
        if not any(block.strip() for block in iter(lambda: stream.read(_LOOK_BACK), b"")):
            raise no_text(path)
        size = stream.seek(0, 2)
        while start < size:
            end = _last_cut(stream, start, size, _LINE_END if lines else _BLANK_LINE)
            if end is None and lines:
                end = _line_end(stream, start, path)
            if end is not None:
                yield Span(path, start, end, end - start)
                start = end
            else:
                stream.seek(start)
                yield from read_long_document(stream, path)
                start = stream.tell()


def _row_groups(path: Path, text_format: TextFormat) -> Iterator[Span | str]:
    with parquet_file(path) as table:
        groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        if not any(group.num_rows for group in groups):
            raise no_text(path)
        sizes = [group.total_byte_size for group in groups]
    for group, size in enumerate(sizes):
        span = Span(path, group, group + 1, size)
        if size <= _LARGEST_ROW_GROUP:
            yield span
        else:
            yield from read_span(span, text_format)


def _last_cut(stream: IO[bytes], start: int, size: int, pattern: re.Pattern[bytes]) -> int | None:
    """Where the last document that fits into a chunk ends; None where the first one does not."""
    limit = start + CHUNK_BYTES
    if limit >= size:
        return size
    low, back = limit, _LOOK_BACK
    while low > start:
        low, back = max(start, limit - back), back * 4
        stream.seek(low)
        if match := pattern.match(stream.read(limit - low)):
            return low + match.end()
    return None


def _line_end(stream: IO[bytes], start: int, path: Path) -> int:
    """The end of a line that is longer than a chunk; what is wrong with an endless one, its reader says."""
    stream.seek(start)
    stream.readline(MAX_JSON_LINE_BYTES)
    return stream.tell()
