from __future__ import annotations

from pathlib import Path

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
