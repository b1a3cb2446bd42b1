from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bertfast.errors import ArtifactError, BertfastError
from bertfast.model.weights import load_weights, open_checkpoint, read_tensors, save_tensors
from bertfast.tasks import get_task, task_of
from bertfast.text import tokenizer as tokenization


@pytest.fixture
def foreign(classifier: Path, tmp_path: Path) -> Path:
    """The checkpoint as a foreign directory: no manifest."""
    path = tmp_path / "foreign"
    shutil.copytree(classifier, path)
    (path / "manifest.json").unlink()
    return path


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_foreign_directory_is_adopted_by_its_architecture(foreign: Path) -> None:
    checkpoint = open_checkpoint(foreign)
    assert task_of(checkpoint).name == "classify"
    assert checkpoint.labels == ("building", "nature", "tool")


def test_another_model_type_is_refused_by_name(foreign: Path) -> None:
    edit_config(foreign, model_type="roberta")
    with pytest.raises(ArtifactError, match="model_type 'roberta'. bertfast runs 'bert'"):
        open_checkpoint(foreign)


def test_relative_positions_are_refused(foreign: Path) -> None:
    edit_config(foreign, position_embedding_type="relative_key")
    with pytest.raises(ArtifactError, match="relative_key"):
        open_checkpoint(foreign)


def test_an_encoder_without_a_head_says_what_to_do(minilm: Path) -> None:
    with pytest.raises(ArtifactError, match="sentence-transformers folder.*bertfast train classify"):
        task_of(open_checkpoint(minilm))


def test_a_vocabulary_larger_than_the_weights_is_refused(foreign: Path) -> None:
    edit_config(foreign, vocab_size=20)
    with pytest.raises(ArtifactError, match=r"ids up to \d+ and the weights hold 20"):
        open_checkpoint(foreign)


def test_weights_of_another_shape_are_refused(foreign: Path) -> None:
    edit_config(foreign, intermediate_size=48)
    checkpoint = open_checkpoint(foreign)
    with pytest.raises(ArtifactError, match=r"intermediate.dense.weight has shape \(64, 32\).*asks for \(48, 32\)"):
        load_weights(get_task("classify").build(checkpoint.config, 3), foreign)


def test_a_missing_encoder_weight_is_named(foreign: Path) -> None:
    edit_config(foreign, num_hidden_layers=3)
    checkpoint = open_checkpoint(foreign)
    with pytest.raises(ArtifactError, match=r"lacks bert.encoder.layer.2"):
        load_weights(get_task("classify").build(checkpoint.config, 3), foreign)


def test_weights_cut_in_half_are_refused(foreign: Path) -> None:
    file = foreign / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        read_tensors(file)


def test_our_checkpoint_cut_in_half_is_refused_before_it_is_read(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    shutil.copytree(classifier, path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="cut short or changed"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_damaged_json_is_refused(foreign: Path, name: str) -> None:
    (foreign / name).write_text('{"model_type": ')
    if name == "tokenizer_config.json":
        (foreign / "tokenizer.json").unlink()
    with pytest.raises(BertfastError, match="damaged"):
        open_checkpoint(foreign)


def test_names_without_prefix_are_read(foreign: Path) -> None:
    file = foreign / "model.safetensors"
    tensors = {name.removeprefix("bert."): tensor for name, tensor in read_tensors(file).items()}
    save_tensors(tensors, file)
    model = get_task("classify").build(open_checkpoint(foreign).config, 3)
    assert load_weights(model, foreign) == []


def test_a_directory_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no config.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_checkpoint(tmp_path / "no")
    with pytest.raises(ArtifactError, match="neither tokenizer.json nor vocab.txt"):
        tokenization.load(tmp_path)
