"""Which files the inputs of a corpus are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bertfast.errors import DataError
from bertfast.text.files import files_of, open_binary


def test_a_directory_is_walked_without_what_is_hidden_or_holds_nothing(tmp_path: Path) -> None:
    for name in ("b.txt", "in/a.txt", ".git/config", "in/.cache/x.txt", ".hidden", "elsewhere/c.txt"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("text")
    (tmp_path / "root" / "_SUCCESS").touch()
    (tmp_path / "root" / "elsewhere").rename(tmp_path / "elsewhere")
    for name, target in {"y": "elsewhere", "z": "elsewhere", "loop": "root"}.items():
        (tmp_path / "root" / name).symlink_to(tmp_path / target)
    found = [path.relative_to(tmp_path / "root").as_posix() for path in files_of([tmp_path / "root"])]
    assert found == ["b.txt", "in/a.txt", "y/c.txt"]
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty" / "_SUCCESS").touch()
    with pytest.raises(DataError, match="without a file that holds anything. Check the path"):
        list(files_of([tmp_path / "empty"]))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.json", "rename it to .jsonl"),
        ("a.csv", "write its column"),
        ("a.TSV", "JSON lines"),
        ("a.json.gz", "rename"),
    ],
)
def test_what_is_no_text_by_its_name_is_refused(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_text("{}")
    for inputs in ([tmp_path / name], [tmp_path]):
        with pytest.raises(DataError, match=remedy):
            list(files_of(inputs))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_the_system_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    (tmp_path / "a.txt").write_text("text")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DataError, match=rf"a\.txt cannot be read \({os.strerror(error.errno)}\)"):
        open_binary(tmp_path / "a.txt")
