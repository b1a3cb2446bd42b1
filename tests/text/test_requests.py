from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from bertfast.errors import DataError
from bertfast.text.documents import MAX_JSON_LINE_BYTES
from bertfast.text.requests import in_windows, read_requests


def test_what_came_before_a_malformed_request_is_handed_out_first(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"id": {number}}}\n' for number in range(6)))

    def check(request: dict[str, Any]) -> None:
        if request["id"] == 5:
            raise DataError("five is malformed")

    windows = in_windows(read_requests(str(file), check), size=2)
    assert [[request["id"] for request in next(windows)] for _ in range(3)] == [[0, 1], [2, 3], [4]]
    with pytest.raises(DataError, match=r"in.jsonl:6: five is malformed"):
        next(windows)


def test_a_line_of_standard_input_has_the_limit_of_a_file_s(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"text": "a"}\n{"text": "' + b"a" * MAX_JSON_LINE_BYTES + b'"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    given = read_requests("-", lambda request: None)
    assert next(given) == {"text": "a"}
    with pytest.raises(DataError, match="standard input:2 is over 33,554,432 bytes long"):
        next(given)
