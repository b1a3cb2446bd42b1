"""Rows of TSV, CSV, JSON lines and Parquet, each also as .gz, with the place that each comes from."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bertfast.errors import DataError, did_you_mean
from bertfast.text.documents import parse_json_lines, read_parquet
from bertfast.text.encodings import read_lines
from bertfast.text.files import format_of

SPLIT_COLUMN = "split"

Row = dict[str, object]


def read_table(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where it is from, values by column) of each row that holds anything.

    Args:
        file: a path; where the rows name their split in a column `split`, `PATH:SPLIT` or `PATH:SPLIT+SPLIT`.
    Raises:
        DataError: the file cannot be read, a row does not fit its header, or the rows are of several splits and none
            is named.
    """
    path, wanted = split_reference(file)
    if format_of(path) not in _READERS:
        raise DataError(f"{path}: labelled rows come as {', '.join(f'.{name}' for name in _READERS)} (also .gz).")
    rows = ((f"{path}:{number}", row) for number, row in _READERS[format_of(path)](path))
    return _of_splits(path, rows, wanted) if wanted else _of_one_split(path, rows)


def split_reference(file: Path) -> tuple[Path, Sequence[str]]:
    """The file and the splits that `PATH:SPLIT+SPLIT` names; an existing file with a colon in its name is itself."""
    name, _, splits = file.name.rpartition(":")
    path = file.with_name(name) if name else file
    return (path, splits.split("+")) if format_of(path) in _READERS and not file.exists() else (file, ())


def _of_splits(path: Path, rows: Iterator[tuple[str, Row]], wanted: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of these splits; each of them must be there."""
    present = set()
    for where, row in rows:
        if SPLIT_COLUMN not in row:
            raise DataError(
                f"{where} has no column '{SPLIT_COLUMN}', so '{'+'.join(wanted)}' cannot be chosen from it."
            )
        split = _split(row)
        present.add(split)
        if split in wanted:
            yield where, row
    for name in wanted:
        if present and name not in present:  # of a file without rows the reader says so
            raise DataError(
                f"{path} has no split '{name}'; it has {', '.join(sorted(present))}.{did_you_mean(name, present)}"
            )


def _split(row: Row) -> str:
    """The name of a row's split, which may be a number, such as a fold's."""
    return str(row.get(SPLIT_COLUMN)).strip()


def _of_one_split(path: Path, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """All rows; several splits at once would train on what is to be tested."""
    first = None
    for where, row in rows:
        split = _split(row)
        first = first or split
        if split != first:
            raise DataError(
                f"{where} is of the split '{split}' and the rows before it are of '{first}' (column '{SPLIT_COLUMN}'). "
                f"Name the one that is meant, such as {path}:{first}, or several, such as {path}:{first}+{split}."
            )
        yield where, row


def _read_tsv(path: Path) -> Iterator[tuple[int, Row]]:
    """Tab-separated with a header; quotes are ordinary characters, as in GLUE and STS-B."""
    remedy = "A text with tabs or line ends needs CSV or JSON lines: in TSV quotes are ordinary characters."
    lines = read_lines(path)
    header = _header(path, next(lines, (1, ""))[1].split("\t"))
    for number, line in lines:
        if line.strip():
            yield number, _named(f"{path}:{number}", header, line.split("\t"), remedy)


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Comma-separated with a header; quoted fields may span lines, and a row is named by its first line."""
    records = _csv_records(path)
    header = _header(path, next(records, (1, 1, []))[2])
    for first, last, fields in records:
        if any(field.strip() for field in fields):
            where = f"{path}:{first}" if first == last else f"{path}:{first} (to line {last})"
            yield first, _named(where, header, fields, "Is a quote left open, or a text with a comma not quoted?")


def _csv_records(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (first line, last line, fields)."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((f"{line}\n" for _, line in read_lines(path)), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{first}: the row that begins here is not well-formed CSV ({error}, line {reader.line_num}). "
                "Is a quote left open? Close it; a quote inside a quoted text is written twice."
            ) from None
        yield first, reader.line_num, fields


def _header(path: Path, names: Sequence[str]) -> list[str]:
    header = [name.strip() for name in names]
    for name in filter(None, header):
        if header.count(name) > 1:
            raise DataError(f"{path}:1 names the column '{name}' {header.count(name)} times. Give each its own name.")
    return header


def _named(where: str, header: Sequence[str], fields: Sequence[str], remedy: str) -> Row:
    """The fields by their column; what is left over must be empty, as after a last separator."""
    if len(fields) < len(header) or any(fields[len(header) :]):
        raise DataError(
            f"{where} has {len(fields)} fields and the header has {len(header)} ({', '.join(header)}). {remedy}"
        )
    return dict(zip(header, fields, strict=False))


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    return parse_json_lines(read_lines(path), path)


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    "jsonl": _read_json_lines,
    "parquet": read_parquet,
    "tsv": _read_tsv,
    "csv": _read_csv,
}
