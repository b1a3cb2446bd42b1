from __future__ import annotations

import fcntl
import itertools
import os
import pkgutil
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bertfast import artifact
from bertfast.errors import ArtifactError


def make(path: Path, text: str = "hello", *, overwrite: bool = False) -> Path:
    with artifact.create(path, "report", overwrite=overwrite) as draft:
        (draft.path / "file.txt").write_text(text)
    return path


def test_an_artefact_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    manifest = artifact.open_manifest(make(tmp_path / "a"), "report")
    assert manifest.files["file.txt"].bytes == 5
    assert len(manifest.sha256) == 64


def test_identity_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    one, same, other = (artifact.open_manifest(make(tmp_path / n, t)) for n, t in (("a", "x"), ("b", "x"), ("c", "y")))
    assert one.sha256 == same.sha256 != other.sha256


def test_nothing_is_left_of_a_failed_draft(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), artifact.create(tmp_path / "a", "report") as draft:
        (draft.path / "file.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_one(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), artifact.create(path, "report", overwrite=True):
        raise RuntimeError
    assert (path / "file.txt").read_text() == "old"
    assert (make(path, "new", overwrite=True) / "file.txt").read_text() == "new"


def test_an_existing_artefact_is_in_the_way(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="already there.*--overwrite"):
        make(tmp_path / "a")


def test_overwrite_does_not_remove_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="replaces only a 'report' of bertfast"):
        make(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("keep", [0, 1, 40, 200])
def test_a_torn_manifest_is_refused(tmp_path: Path, keep: int) -> None:
    path = make(tmp_path / "a")
    file = path / artifact.MANIFEST
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="is damaged"):
        artifact.open_manifest(path)


def test_a_cut_file_is_refused_even_without_hashing(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    (path / "file.txt").write_text("hel")
    with pytest.raises(ArtifactError, match="3 bytes and its manifest says 5"):
        artifact.open_manifest(path, verify_hashes=False)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    (path / "file.txt").write_text("hallo")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        artifact.open_manifest(path)


def test_what_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        artifact.open_manifest(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        artifact.open_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="of kind 'report', and 'corpus' is needed"):
        artifact.open_manifest(make(tmp_path / "a"), "corpus")


def test_overwrite_replaces_only_its_own_kind(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="replaces only a 'onnx'.*of kind 'report'"):
        artifact.refuse_existing(tmp_path / "a", "onnx", overwrite=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(ArtifactError, match="not a manifest of bertfast"):
        make(tmp_path / "b", overwrite=True)
    assert (tmp_path / "b" / "manifest.json").exists()


def test_a_draft_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="bertfast did not make it"):
        make(tmp_path / "a")
    assert (tmp_path / "a.partial" / "thesis.txt").read_text() == "precious"


def test_what_appeared_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="already there"), artifact.create(tmp_path / "a", "report"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "other.txt").write_text("another run")
    assert (tmp_path / "a" / "other.txt").read_text() == "another run"
    assert not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_do_not_share_a_draft(tmp_path: Path, overwrite: bool) -> None:
    with artifact.create(tmp_path / "a", "report") as draft:
        (draft.path / "file.txt").write_text("the first run's")
        with pytest.raises(ArtifactError, match=r"another process is writing in .*a\.partial. Wait for it, or end it"):
            make(tmp_path / "a", overwrite=overwrite)
    assert (tmp_path / "a" / "file.txt").read_text() == "the first run's"
    artifact.open_manifest(make(tmp_path / "a", "the second run's", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_went_while_it_was_being_locked_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.make_own_directory(tmp_path / "a.run")
    monkeypatch.setattr(fcntl, "flock", lambda *_: shutil.rmtree(tmp_path / "a.run"))
    with pytest.raises(ArtifactError, match="another process is training"):
        artifact.hold(tmp_path / "a.run", "training")


def make_and_be_killed(path: Path, call: str, nth: int, overwrite: bool) -> None:
    """Make an artefact, and be killed by SIGKILL in place of the n-th call of a function."""
    real, calls = pkgutil.resolve_name(call), itertools.count(1)

    def fatal(*arguments: Any, **named: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    with mock.patch(call, fatal):
        make(path, "new", overwrite=overwrite)


def kill_at(path: Path, call: str, nth: int, *, overwrite: bool = False) -> None:
    process = get_context("spawn").Process(target=make_and_be_killed, args=(path, call, nth, overwrite))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


KILLS = {
    "as the draft is made": ("pathlib.Path.mkdir", 2),
    "while a file is hashed": ("hashlib.file_digest", 1),
    "while the first file is flushed": ("os.fsync", 1),
    "before all is flushed": ("os.fsync", 3),
    "before the first rename": ("pathlib.Path.rename", 1),
    "after the last rename": ("pathlib.Path.unlink", 1),
    "before the mark goes": ("pathlib.Path.unlink", 2),
    "before the working place goes": ("pathlib.Path.rmdir", 1),
}
KILLS_OF_A_REPLACEMENT = KILLS | {
    "between the renames": ("pathlib.Path.rename", 2),
    "before the files of what was there go": ("shutil.rmtree", 1),
}


@pytest.mark.parametrize(("call", "nth"), KILLS.values(), ids=KILLS)
def test_a_kill_leaves_nothing_or_a_whole_artefact_and_blocks_no_later_run(tmp_path: Path, call: str, nth: int) -> None:
    path = tmp_path / "a"
    kill_at(path, call, nth)
    if path.exists():
        artifact.open_manifest(path, "report")
    make(path, "newer", overwrite=path.exists())
    assert artifact.open_manifest(path).files.keys() == {"file.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("call", "nth"), KILLS_OF_A_REPLACEMENT.values(), ids=KILLS_OF_A_REPLACEMENT)
def test_a_killed_replacement_loses_nothing_and_blocks_no_later_run(tmp_path: Path, call: str, nth: int) -> None:
    path = make(tmp_path / "a", "old")
    kill_at(path, call, nth, overwrite=True)
    with pytest.raises(ArtifactError, match="already there"):
        artifact.refuse_existing(path, "report", overwrite=False)
    artifact.open_manifest(path, "report")
    assert (path / "file.txt").read_text() in ("old", "new")
    assert (make(path, "newer", overwrite=True) / "file.txt").read_text() == "newer"
    assert artifact.open_manifest(path).files.keys() == {"file.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_was_there_comes_back_when_the_new_one_cannot_be_moved_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = make(tmp_path / "a", "old"), Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name == "draft":
            raise PermissionError
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        make(path, "new", overwrite=True)
    artifact.open_manifest(path)
    assert (path / "file.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["NOTES.md", "onnx/manifest.json"])
def test_overwrite_does_not_remove_a_file_that_others_put_there(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "a", "old")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("precious")
    with pytest.raises(ArtifactError, match=rf"holds 1 file\(s\) that its manifest does not name.*: {name}\. Move"):
        make(path, "new", overwrite=True)
    assert (path / name).read_text() == "precious"
    assert (path / "file.txt").read_text() == "old"


def test_a_link_to_an_artefact_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make(tmp_path / "a", "old"))
    make(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "file.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


def test_identity_is_what_it_is_without_its_logs() -> None:
    one = artifact.Manifest(
        kind="onnx", bertfast_version="1", labels=("a", "b"), files={"x": record("1"), "logs/y": record("2")}
    )
    same = one.model_copy(update={"files": {"x": record("1"), "logs/y": record("3")}})
    other = one.model_copy(update={"labels": ("b", "a")})
    assert one.sha256 == same.sha256 != other.sha256


def record(sha256: str) -> artifact.FileRecord:
    return artifact.FileRecord(bytes=1, sha256=sha256)


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    file = path / artifact.MANIFEST
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 9, "new": true'))
    with pytest.raises(ArtifactError, match="schema 9, and this version reads 1"):
        artifact.open_manifest(path)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname"])
def test_a_file_outside_the_artefact_is_refused(tmp_path: Path, name: str) -> None:
    """Whoever copies what a manifest names, as a build does, would write there."""
    path = make(tmp_path / "a")
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("file.txt", name))
    with pytest.raises(ArtifactError, match=f"names {name}, which lies outside the artefact"):
        artifact.open_manifest(path)
