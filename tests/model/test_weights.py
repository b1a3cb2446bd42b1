from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import bertfast
from bertfast.errors import ArtifactError, BertfastError
from bertfast.model.tensors import read_tensors, save_tensors
from bertfast.model.weights import load_weights, open_checkpoint
from bertfast.tasks import get_task, task_of
from bertfast.tasks.task import NoSettings
from bertfast.text import tokenizer as tokenization
from bertfast.text.tokenizer import Tokenizer


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


def test_an_encoder_without_a_head_says_what_to_do(encoder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(encoder, bare, ignore=shutil.ignore_patterns("manifest.json", "modules.json"))
    with pytest.raises(ArtifactError, match="is BertModel, which has no head.*bertfast train classify"):
        task_of(open_checkpoint(bare))


def test_a_vocabulary_larger_than_the_weights_is_refused(foreign: Path) -> None:
    edit_config(foreign, vocab_size=20)
    with pytest.raises(ArtifactError, match=r"ids up to \d+ and the weights hold 20"):
        open_checkpoint(foreign)


def test_weights_of_another_shape_are_refused(foreign: Path) -> None:
    edit_config(foreign, intermediate_size=48)
    checkpoint = open_checkpoint(foreign)
    with pytest.raises(ArtifactError, match=r"intermediate.dense.weight has shape \(64, 32\).*asks for \(48, 32\)"):
        load_weights(get_task("classify").build(checkpoint.config, 3, NoSettings()), foreign)


def test_a_missing_encoder_weight_is_named(foreign: Path) -> None:
    edit_config(foreign, num_hidden_layers=3)
    checkpoint = open_checkpoint(foreign)
    with pytest.raises(ArtifactError, match=r"lacks bert.encoder.layer.2"):
        load_weights(get_task("classify").build(checkpoint.config, 3, NoSettings()), foreign)


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
    model = get_task("classify").build(open_checkpoint(foreign).config, 3, NoSettings())
    assert load_weights(model, foreign) == []


def test_a_directory_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no config.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_checkpoint(tmp_path / "no")
    with pytest.raises(ArtifactError, match="neither tokenizer.json nor vocab.txt"):
        tokenization.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, "classify"),
        ({"problem_type": "multi_label_classification"}, "multi-label"),
        ({"problem_type": "regression", "id2label": {"0": "LABEL_0"}}, "regress"),
        ({"id2label": {"0": "LABEL_0"}}, "regress"),
        ({"architectures": ["BertForPreTraining"], "problem_type": "regression"}, "pretrain"),
    ],
)
def test_what_the_logits_mean_names_the_task(foreign: Path, changes: dict[str, Any], task: str) -> None:
    edit_config(foreign, **{"problem_type": None} | changes)
    assert task_of(open_checkpoint(foreign)).name == task


def test_a_head_for_several_numbers_is_refused(foreign: Path) -> None:
    edit_config(foreign, problem_type="regression")
    with pytest.raises(ArtifactError, match=r"a head for regression \(3 labels\).*regression to one number"):
        task_of(open_checkpoint(foreign))


def test_an_untied_decoder_is_refused(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "p")
    file = tmp_path / "p" / "model.safetensors"
    tensors = read_tensors(file)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    model = get_task("pretrain").build(open_checkpoint(pretrained).config, 2, NoSettings())
    save_tensors(tensors | {"cls.predictions.decoder.weight": words.clone()}, file)
    assert load_weights(model, tmp_path / "p") == []
    save_tensors(tensors | {"cls.predictions.decoder.weight": words + 1}, file)
    with pytest.raises(ArtifactError, match="not tied"):
        load_weights(model, tmp_path / "p")


def test_a_missing_head_is_not_served_as_random_numbers(foreign: Path) -> None:
    file = foreign / "model.safetensors"
    save_tensors({name: t for name, t in read_tensors(file).items() if not name.startswith("classifier")}, file)
    with pytest.raises(ArtifactError, match="lacks classifier.weight.*its answers would be random"):
        bertfast.load(foreign)


def test_the_names_of_tensorflow_s_layer_norm_are_read(foreign: Path) -> None:
    file = foreign / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in read_tensors(file).items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = tensor
    save_tensors(renamed, file)
    model = get_task("classify").build(open_checkpoint(foreign).config, 3, NoSettings())
    assert load_weights(model, foreign, complete=True) == []


def test_a_binary_classifier_that_transformers_saved_is_served(
    tokenizer: Tokenizer, tiny_bert_config: transformers.BertConfig, tmp_path: Path
) -> None:
    transformers.BertForSequenceClassification(tiny_bert_config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    with bertfast.load(tmp_path) as model:
        assert model.predict(["The river."])[0]["label"] in ("LABEL_0", "LABEL_1")
    edit_config(tmp_path, id2label={"first": "a"})
    with pytest.raises(ArtifactError, match="id2label is not"):
        open_checkpoint(tmp_path)
