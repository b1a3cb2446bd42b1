"""Which files the inputs are, and how one is opened: what is wrong with a file is said with its name."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from bertfast.errors import DataError, did_you_mean

DAMAGED = (EOFError, zlib.error, OSError)


def files_of(inputs: Iterable[Path]) -> Iterator[Path]:
    """The inputs with each directory replaced by the files in it, in sorted order.

    Links are followed, each directory once. What is hidden is left out, and so is a file of no bytes: other tools
    leave such marks beside their data.

    Raises:
        DataError: a directory cannot be read or holds no file with text, or a file is of a format that holds no text.
    """
    for path in inputs:
        if path.is_dir():
            with reading(path):
                files = sorted(_walk(path))
            if not files:
                raise DataError(f"{path} is a directory without a file that holds anything. Check the path.")
        else:
            files = [path]
        for file in files:
            _refuse_other_formats(file)
            yield file


def _walk(root: Path) -> Iterator[Path]:
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = {name: os.path.realpath(Path(folder, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = []
        for name, target in real.items():
            if target not in seen:
                seen.add(target)
                folders.append(name)
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if not file.exists() or (file.is_file() and file.stat().st_size):
                yield file  # a link to nothing as well: who opens it says so


def _raise(error: OSError) -> None:
    raise error


def _refuse_other_formats(path: Path) -> None:
    suffix = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    remedies = {
        ".json": "rename it to .jsonl where it has one object a line, and else write it so",
        ".csv": "write its column of text as JSON lines or Parquet",
        ".tsv": "write its column of text as JSON lines or Parquet",
    }
    if suffix in remedies:
        raise DataError(f"{path} is no plain text, JSON lines or Parquet by its name: {remedies[suffix]}.")


def format_of(path: Path) -> str:
    """A file's format by its name, without `.gz`: `jsonl`, `json`, `parquet`, `tsv`, `csv` or, for anything
    else, `text`."""
    suffix = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    known = {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".parquet": "parquet",
        ".tsv": "tsv",
        ".csv": "csv",
    }
    return known.get(suffix, "text")


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, unpacking `.gz`; DataError where there is no such file, or none that can be read."""
    with reading(path):
        return _open(path)


def _open(path: Path) -> IO[bytes]:
    if not path.exists():
        near = did_you_mean(path.name, [item.name for item in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise DataError(f"{path} does not exist.{near} Check the path.")
    if path.is_dir():
        raise DataError(f"{path} is a directory, and one file is needed here. Name a file in it.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Remove it from the inputs, or write it again.")
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def damaged(source: Path | str, lines: int, error: Exception) -> DataError:
    return DataError(f"{source} is truncated or damaged after line {lines}: {error}. Copy it again, or leave it out.")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of which file it is that the system cannot read it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be read ({reason}). Check its permissions and its disk.") from None
