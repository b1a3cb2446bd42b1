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
    FileRange,
    TextFormat,
    parquet_file,
    read_file,
    read_long_document,
    read_range,
)
from bertfast.text.files import files_of, format_of, open_binary, reading

CHUNK_BYTES = 1 << 22
_LARGEST_ROW_GROUP = 1 << 25
_LOOK_BACK = 1 << 16
_LINE_END = re.compile(rb".*\n", re.DOTALL)
_BLANK_LINE = re.compile(rb".*\n[ \t\r]*\n", re.DOTALL)
Piece = FileRange | str


@dataclass(frozen=True)
class Chunk:
    """Parts of files and texts, in order.

    Attributes:
        pieces: each with the number of its file among all.
        size: bytes of the parts and characters of the texts.
    """

    pieces: tuple[tuple[int, Piece], ...]
    size: int

    def texts(self, text_format: TextFormat) -> Iterator[tuple[int, str]]:
        """Read the documents, each with the number of its file."""
        for file, piece in self.pieces:
            if isinstance(piece, str):
                yield file, piece
            else:
                yield from ((file, text) for text in read_range(piece, text_format))


def chunks_of(pieces: Iterable[tuple[int, Piece]]) -> Iterator[Chunk]:
    """Gather pieces to chunks of up to `CHUNK_BYTES`, or of one piece that is larger."""
    held: list[tuple[int, Piece]] = []
    size = 0
    for file, piece in pieces:
        more = len(piece) if isinstance(piece, str) else piece.size
        if held and size + more > CHUNK_BYTES:
            yield Chunk(tuple(held), size)
            held, size = [], 0
        held.append((file, piece))
        size += more
    if held:
        yield Chunk(tuple(held), size)


def pieces_of(inputs: Sequence[Path], text_format: TextFormat) -> Iterator[tuple[int, Piece]]:
    """Cut files and directories where documents end; only the surroundings of the cuts are read.

    How a file is cut depends on nothing but the file. Whether there is text in it, who reads the pieces knows.

    Raises:
        DataError: a file cannot be read.
    """
    for number, path in enumerate(files_of(inputs)):
        with reading(path):
            yield from ((number, piece) for piece in _pieces_of_file(path, text_format))


def _pieces_of_file(path: Path, text_format: TextFormat) -> Iterator[Piece]:
    kind = format_of(path)
    whole = kind == "text" and text_format.boundary == "file" and path.is_file() and path.stat().st_size > CHUNK_BYTES
    if path.suffix == ".gz" or whole:
        yield from read_file(path, text_format)
    elif kind == "parquet":
        yield from _row_groups(path, text_format)
    else:
        yield from _ranges(path, lines=kind == "jsonl")


def _ranges(path: Path, *, lines: bool) -> Iterator[Piece]:
    start = 0
    with open_binary(path) as stream:
        size = stream.seek(0, 2)
        while start < size:
            end = _last_cut(stream, start, size, _LINE_END if lines else _BLANK_LINE)
            if end is None and lines:
                end = _line_end(stream, start, path)
            if end is not None:
                yield FileRange(path, start, end, end - start)
                start = end
            else:
                stream.seek(start)
                yield from read_long_document(stream, path)
                start = stream.tell()


def _row_groups(path: Path, text_format: TextFormat) -> Iterator[Piece]:
    with parquet_file(path) as table:
        groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
    for group, size in enumerate(sizes):
        rows = FileRange(path, group, group + 1, size)
        if size <= _LARGEST_ROW_GROUP:
            yield rows
        else:
            yield from read_range(rows, text_format)


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
