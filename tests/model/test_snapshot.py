"""Models of the hub. None is reached: the client is replaced by one that lays down what a repository would hold."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from bertfast.backends.served import open_served
from bertfast.errors import ArtifactError
from bertfast.model.heads import BertForSequenceClassification
from bertfast.model.snapshot import local_model
from bertfast.model.tensors import read_tensors, save_tensors
from bertfast.model.weights import load_weights, open_checkpoint

REFERENCE = Path("hub:owner/name")


@pytest.fixture
def repository(classifier: Path, tmp_path: Path) -> Path:
    """A repository on the hub: a model in every form, and what is not to be fetched."""
    path = tmp_path / "repository"
    shutil.copytree(classifier, path)
    (path / "manifest.json").unlink()
    torch.save(read_tensors(path / "model.safetensors"), path / "pytorch_model.bin")
    for name in ("modeling.py", "README.md", "tf_model.h5", "training_args.bin", "onnx/model.safetensors"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


@pytest.fixture
def revisions(monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path) -> list[Any]:
    """Replaces the client; the revisions that it is asked for."""
    asked: list[Any] = []
    cache = tmp_path / "cache"

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "owner/name"
        asked.append(revision)
        for file in (path for path in repository.rglob("*") if path.is_file()):
            relative = file.relative_to(repository)
            if any(fnmatch.fnmatch(relative.as_posix(), pattern) for pattern in allow_patterns):
                (cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / relative)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def files(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


DESCRIPTION = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def test_a_local_path_stays_as_it_is(tmp_path: Path) -> None:
    assert local_model(tmp_path) == tmp_path


def test_a_model_is_fetched_without_code_and_without_its_pickle(revisions: list[Any], repository: Path) -> None:
    path = local_model(REFERENCE)
    assert files(path) == DESCRIPTION | {"model.safetensors"}
    checkpoint = open_checkpoint(path)
    assert load_weights(BertForSequenceClassification(checkpoint.config, 3), path, complete=True) == []
    assert revisions == [None]


def test_a_model_of_the_hub_keeps_its_name(classifier: Path, tmp_path: Path) -> None:
    folder = huggingface_hub.file_download.repo_folder_name(repo_id="owner/a-name", repo_type="model")
    snapshot = tmp_path / folder / "snapshots" / "0123abc"
    shutil.copytree(classifier, snapshot)
    assert open_served(snapshot).name == "owner/a-name"
    assert open_served(classifier).name == classifier.name


def test_a_pickle_is_fetched_where_there_is_nothing_better(revisions: list[Any], repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    path = local_model(Path("hub:owner/name@v1.0"))
    assert files(path) == DESCRIPTION | {"pytorch_model.bin"}
    assert load_weights(BertForSequenceClassification(open_checkpoint(path).config, 3), path, complete=True) == []
    assert revisions == ["v1.0", "v1.0"]


def test_shards_and_pooling_come_along(revisions: list[Any], repository: Path) -> None:
    weights = read_tensors(repository / "model.safetensors")
    (repository / "model.safetensors").unlink()
    shard = "model-00001-of-00001.safetensors"
    save_tensors(weights, repository / shard)
    (repository / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, shard)}))
    (repository / "1_Pooling").mkdir()
    (repository / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (repository / "modules.json").write_text(json.dumps(modules))
    path = local_model(REFERENCE)
    fetched = {"model.safetensors.index.json", shard, "modules.json", "1_Pooling/config.json"}
    assert files(path) == DESCRIPTION | fetched
    assert load_weights(BertForSequenceClassification(open_checkpoint(path).config, 3), path, complete=True) == []


@pytest.mark.parametrize(
    "reference", ["hub:", "hub:owner/name/more", "hub:owner/name@", "hub:a b", "hub:foo--bar/x", "hub:x."]
)
def test_a_malformed_reference_is_refused(reference: str) -> None:
    with pytest.raises(ArtifactError, match="is not of the form hub:OWNER/NAME"):
        local_model(Path(reference))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalEntryNotFoundError("ConnectError\nmore"),
            r"hub cannot be reached \(ConnectError\).*local path",
        ),
        (
            RepositoryNotFoundError("404 Client Error.\n\nNot Found.", response=Mock()),
            r"hub:owner/name: the hub refuses it \(404 Client Error. Not Found.*Check the name",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ArtifactError, match=message):
        local_model(REFERENCE)
