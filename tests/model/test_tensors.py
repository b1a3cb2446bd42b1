"""Checkpoints in the layouts of others hold the same weights as in ours, bit for bit; what is damaged is named."""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import bertfast
from bertfast.config import ModelConfig
from bertfast.errors import ArtifactError
from bertfast.model.heads import BertForPreTraining
from bertfast.model.tensors import our_name, read_tensors, read_weights, save_tensors, weights_source
from bertfast.model.weights import load_weights, open_checkpoint
from bertfast.tasks import task_of
from bertfast.text.tokenizer import Tokenizer

Weights = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> Any:
    """A tiny pretraining model of transformers with random weights."""
    torch.manual_seed(5)
    shape = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=48,
    )
    model = transformers.BertForPreTraining(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def with_tensorflow_s_norms(weights: Weights) -> dict[str, Tensor]:
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((name.replace(new, before) for new, before in old.items() if name.endswith(new)), name): tensor
        for name, tensor in weights.items()
    }


def save_bin(weights: Weights, path: Path) -> None:
    torch.save(collections.OrderedDict(weights), path / "pytorch_model.bin")


def save_old_bin(weights: Weights, path: Path) -> None:
    torch.save(dict(weights), path / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_sharded_bin(weights: Weights, path: Path) -> None:
    shard_of = {name: f"pytorch_model-0000{1 + i % 3}-of-00003.bin" for i, name in enumerate(weights)}
    for shard in set(shard_of.values()):
        torch.save({name: weights[name] for name in weights if shard_of[name] == shard}, path / shard)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


def save_old_names(weights: Weights, path: Path) -> None:
    bare = {name.removeprefix("bert."): tensor for name, tensor in with_tensorflow_s_norms(weights).items()}
    assert "embeddings.LayerNorm.gamma" in bare
    save_bin(bare, path)


def save_sharded(weights: Weights, path: Path) -> None:
    shard_of = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(weights)}
    for shard in set(shard_of.values()):
        save_tensors({name: weights[name].clone() for name in weights if shard_of[name] == shard}, path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


def google_name(name: str) -> str:
    """What google-research/bert calls one of our parameters."""
    special = {
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    }
    if name in special:
        return special[name]
    *path, last = name.replace("layer.", "layer_").split(".")
    if path[-1] == "LayerNorm":
        last = {"weight": "gamma", "bias": "beta"}[last]
    elif path[-1].endswith("_embeddings"):
        return "/".join(path)
    elif last == "weight":
        last = "kernel"
    return "/".join([*path, last])


def google_variables(weights: Weights) -> dict[str, np.ndarray]:
    """A training checkpoint's variables: the weights, Adam's moments of each, and the step."""
    variables: dict[str, np.ndarray] = {"global_step": np.array(1000)}
    for name, tensor in weights.items():
        google = google_name(name)
        array = tensor.numpy().T if google.endswith("/kernel") else tensor.numpy()
        variables |= {google: array, f"{google}/adam_m": array * 0 + 9, f"{google}/adam_v": array * 0 + 9}
    return variables


def save_npz(weights: Weights, path: Path) -> None:
    np.savez(path / "bert_model.npz", **google_variables(weights))


def save_npz_of_variables(weights: Weights, path: Path) -> None:
    np.savez(path / "bert_model.npz", **{f"{name}:0": array for name, array in google_variables(weights).items()})


def save_google_safetensors(weights: Weights, path: Path) -> None:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in google_variables(weights).items()}
    save_tensors(tensors, path / "bert_model.safetensors")


HUGGING_FACE = [save_bin, save_old_bin, save_sharded_bin, save_old_names, save_sharded]
GOOGLE = [save_npz, save_npz_of_variables, save_google_safetensors]


def to_google(path: Path, config: ModelConfig) -> None:
    """Leave of a directory what Google ships: its configuration, which names no model type, and vocab.txt."""
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    settings = {name: getattr(config, name) for name in (*kept, "hidden_act", "max_position_embeddings")}
    (path / "bert_config.json").write_text(json.dumps(settings))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json", "model.safetensors"):
        (path / name).unlink(missing_ok=True)


@pytest.fixture
def foreign(pretrained: Path, tmp_path: Path) -> Path:
    """The pretrained checkpoint without manifest and weights."""
    path = tmp_path / "foreign"
    shutil.copytree(pretrained, path)
    (path / "manifest.json").unlink()
    (path / "model.safetensors").unlink()
    return path


@pytest.fixture
def weights(pretrained: Path) -> dict[str, Tensor]:
    return read_tensors(pretrained / "model.safetensors")


def loaded(path: Path) -> dict[str, Tensor]:
    model = BertForPreTraining(open_checkpoint(path).config)
    assert load_weights(model, path, complete=True) == []
    return model.state_dict()


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("save", HUGGING_FACE, ids=lambda save: save.__name__)
def test_hugging_face_s_layouts_lose_nothing(
    foreign: Path, weights: Weights, save: Callable[[Weights, Path], None]
) -> None:
    save(weights, foreign)
    assert_same(loaded(foreign), weights)


@pytest.mark.parametrize("save", GOOGLE, ids=lambda save: save.__name__)
def test_google_s_names_lose_nothing(
    foreign: Path, weights: Weights, pretrained: Path, save: Callable[[Weights, Path], None]
) -> None:
    save(weights, foreign)
    to_google(foreign, open_checkpoint(pretrained).config)
    assert_same(loaded(foreign), weights)
    assert task_of(open_checkpoint(foreign)).name == "pretrain"


def test_google_s_checkpoint_gives_the_same_outputs_where_it_is_served(
    foreign: Path, weights: Weights, pretrained: Path
) -> None:
    save_npz(weights, foreign)
    to_google(foreign, open_checkpoint(pretrained).config)
    with bertfast.load(foreign, "torch") as theirs, bertfast.load(pretrained, "torch") as ours:
        assert theirs.predict(["The [MASK] crosses the river."]) == ours.predict(["The [MASK] crosses the river."])


@pytest.mark.parametrize("shard_size", ["20KB", "5GB"])
def test_what_transformers_saves_gives_its_outputs(
    theirs: Any, tokenizer: Tokenizer, tmp_path: Path, shard_size: str
) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    tokenizer.save(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    assert_outputs(tmp_path, theirs)


def test_a_state_dict_of_transformers_gives_its_outputs(theirs: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs.config.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    save_bin(with_tensorflow_s_norms(theirs.state_dict()), tmp_path)
    assert_outputs(tmp_path, theirs)


def assert_outputs(path: Path, theirs: Any) -> None:
    ours = BertForPreTraining(open_checkpoint(path).config).eval()
    assert load_weights(ours, path, complete=True) == []
    ids = torch.randint(5, theirs.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, expected = ours(ids, ids * 0 + 1, ids * 0), theirs(ids)
    assert torch.allclose(mine["prediction_logits"], expected.prediction_logits, rtol=1e-5, atol=1e-5)
    assert torch.allclose(mine["seq_relationship_logits"], expected.seq_relationship_logits, rtol=1e-5, atol=1e-5)


def test_our_names_are_left_as_they_are_and_google_s_become_ours(weights: Weights) -> None:
    assert [our_name(name) for name in weights] == list(weights)
    assert [our_name(google_name(name)) for name in weights] == list(weights)
    assert google_name("bert.encoder.layer.1.attention.self.query.weight") == (
        "bert/encoder/layer_1/attention/self/query/kernel"
    )


def test_safetensors_are_preferred_to_a_pickle(foreign: Path, weights: Weights) -> None:
    save_bin({name: tensor * 0 for name, tensor in weights.items()}, foreign)
    save_npz(weights, foreign)
    assert weights_source(foreign).name == "pytorch_model.bin"
    save_sharded(weights, foreign)
    assert weights_source(foreign).name == "model.safetensors.index.json"
    assert_same(loaded(foreign), weights)


@pytest.mark.parametrize("save", [save_sharded, save_sharded_bin], ids=lambda save: save.__name__)
def test_identity_covers_every_shard(foreign: Path, weights: Weights, save: Callable[[Weights, Path], None]) -> None:
    save(weights, foreign)
    before = open_checkpoint(foreign).sha256
    assert open_checkpoint(foreign).sha256 == before
    for shard in foreign.glob("*-of-00003.*"):
        whole = shard.read_bytes()
        shard.write_bytes(whole + b"\0")
        assert open_checkpoint(foreign).sha256 != before
        shard.write_bytes(whole)


def test_an_index_that_names_an_absent_file_is_refused(foreign: Path, weights: Weights) -> None:
    save_sharded(weights, foreign)
    (foreign / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"names 3 files, and model-00002-of-00003.safetensors is not there"):
        open_checkpoint(foreign)


def test_a_shard_that_lacks_a_tensor_is_refused(foreign: Path, weights: Weights) -> None:
    save_sharded(weights, foreign)
    shard = foreign / "model-00001-of-00003.safetensors"
    held = read_tensors(shard)
    lost = next(iter(held))
    save_tensors({name: tensor for name, tensor in held.items() if name != lost}, shard)
    with pytest.raises(ArtifactError, match=rf"model-00001-of-00003.safetensors lacks {lost}, which .*index.json says"):
        loaded(foreign)


@pytest.mark.parametrize("text", ['{"weight_map": ', "{}", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_refused(foreign: Path, text: str) -> None:
    (foreign / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArtifactError, match="index.json is damaged"):
        open_checkpoint(foreign)


def test_an_index_leads_nowhere_else(foreign: Path) -> None:
    (foreign / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(ArtifactError, match=r"names '../../secret.safetensors', and shards lie beside their index"):
        open_checkpoint(foreign)


class Pickled:
    """Something that is not a tensor; no pickle may make one."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_holds_an_object_is_refused(foreign: Path, weights: Weights, zipped: bool) -> None:
    file = foreign / "pytorch_model.bin"
    torch.save({**weights, "extra": Pickled()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match=r"GLOBAL \S*Pickled, and only tensors.*model.safetensors"):
        loaded(foreign)


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ([torch.zeros(2)], "a list"),
        ({"state_dict": {"a": torch.zeros(2)}}, "'state_dict', a dict"),
        ({0: torch.zeros(2)}, "a tensor by 0, which is no name"),
    ],
)
def test_a_pickle_of_other_things_is_refused(foreign: Path, held: object, named: str) -> None:
    torch.save(held, foreign / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=f"pytorch_model.bin holds {named}, and only tensors by name"):
        loaded(foreign)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "bert_model.npz", "bert_model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_cut_short_are_refused(foreign: Path, weights: Weights, name: str, share: float) -> None:
    {".bin": save_bin, ".npz": save_npz, ".safetensors": save_google_safetensors}[Path(name).suffix](weights, foreign)
    file = foreign / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ArtifactError, match=f"{name} is not a whole"):
        read_tensors(file)


def test_a_byte_that_changed_in_an_archive_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    file, array = tmp_path / "bert_model.npz", np.arange(40, dtype=np.float32)
    np.savez_compressed(file, weights=array)
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        held = {}
        with contextlib.suppress(ArtifactError):
            held = read_tensors(file)
        refused += not held
        assert all(torch.equal(tensor, torch.from_numpy(array)) for tensor in held.values())
    assert refused > len(whole) / 2


def test_an_archive_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bert_model.npz", weights=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtifactError, match="not a whole archive of numeric arrays"):
        read_tensors(tmp_path / "bert_model.npz")


def test_names_of_neither_layout_are_refused(foreign: Path, weights: Weights) -> None:
    save_bin({f"module.{name}": tensor for name, tensor in weights.items()}, foreign)
    with pytest.raises(ArtifactError, match=r"holds module.bert.* not the names of a BERT.*Rename the tensors"):
        read_weights(weights_source(foreign))


def test_a_weight_of_another_shape_is_named(foreign: Path, weights: Weights, pretrained: Path) -> None:
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    save_npz({**weights, name: weights[name].T}, foreign)
    to_google(foreign, open_checkpoint(pretrained).config)
    with pytest.raises(ArtifactError, match=rf"{name} has shape \(32, 64\), and bert_config.json asks for \(64, 32\)"):
        loaded(foreign)


def test_a_directory_without_weights_says_which_files_it_could_hold(foreign: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no weights: none of model.safetensors, .*bert_model.npz"):
        open_checkpoint(foreign)


def test_a_checkpoint_of_tensorflow_itself_says_how_it_is_converted(foreign: Path) -> None:
    (foreign / "bert_model.ckpt.index").touch()
    with pytest.raises(ArtifactError, match=r"only TensorFlow reads.*np.savez\('bert_model.npz'"):
        open_checkpoint(foreign)
