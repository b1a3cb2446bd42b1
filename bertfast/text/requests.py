"""Requests to a model as JSON lines, checked and grouped as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bertfast.errors import DataError
from bertfast.text.documents import MAX_JSON_LINE_BYTES, decode_lines, parse_json_lines, read_json_lines
from bertfast.text.labelled import Request


def read_requests(name: str, check: Callable[[dict[str, Any]], object]) -> Iterator[dict[str, Any]]:
    """The requests of a file, or of standard input where `name` is "-".

    Args:
        check: raises DataError for a malformed request.
    Raises:
        DataError: a line is no request; it is named.
    """
    source = "standard input" if name == "-" else name
    standard_input = name == "-"
    rows = (
        parse_json_lines(decode_lines(sys.stdin.buffer, source, limit=MAX_JSON_LINE_BYTES), source)
        if standard_input
        else read_json_lines(Path(name))
    )
    for number, request in rows:
        try:
            check(request)
        except DataError as error:
            raise DataError(f"{source}:{number}: {error}") from None
        yield request


def in_windows(requests: Iterator[Request], size: int = 1024) -> Iterator[list[Request]]:
    """The requests in groups; those before a malformed one come first, so that they are answered."""
    window: list[Request] = []
    try:
        for request in requests:
            window.append(request)
            if len(window) == size:
                yield window
                window = []
    except DataError:
        yield window
        raise
    yield window
