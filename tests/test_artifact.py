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
    with pytest.raises(ArtifactError, match="not an artefact"):
        make(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("keep", [0, 1, 40, 200])
def test_a_torn_manifest_is_refused(tmp_path: Path, keep: int) -> None:
    path = make(tmp_path / "a")
    file = path / artifact.MANIFEST
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="damaged"):
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
