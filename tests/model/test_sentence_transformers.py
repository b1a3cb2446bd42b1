from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import bertfast
from bertfast.errors import ArtifactError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import task_of
from bertfast.tasks.embed import EmbedSettings
from bertfast.tasks.rerank import RerankSettings
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import write_checkpoint

TEXTS = ["The river crosses the old garden.", "A lantern.", "The engine repairs the bridge near a mountain. " * 3, ""]
PAIRS = [("The river", "the bridge"), ("A lantern", "crosses the old garden near a window")]


@pytest.fixture
def foreign(encoder: Path, tmp_path: Path) -> Path:
    """A sentence encoder as a foreign folder: no manifest."""
    path = tmp_path / "foreign"
    shutil.copytree(encoder, path)
    (path / "manifest.json").unlink()
    return path


def edit(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | changes))


def set_modules(path: Path, *types: str, first_path: str = "") -> None:
    folders = [first_path] + [f"{number}_{name}" for number, name in enumerate(types) if number]
    modules = [{"idx": n, "name": str(n), "path": folders[n], "type": f"x.{name}"} for n, name in enumerate(types)]
    (path / "modules.json").write_text(json.dumps(modules))


def test_a_folder_of_theirs_is_served_as_it_is(minilm: Path) -> None:
    checkpoint = open_checkpoint(minilm)
    assert (task_of(checkpoint).name, checkpoint.max_length) == ("embed", 256)
    assert checkpoint.task_settings == {"pooling": "mean", "normalize": True}
    with bertfast.load(minilm, "torch") as model:
        near, far = model.predict(
            [("A man plays a flute.", "Someone is playing the flute."), ("A man plays a flute.", "Prices rose.")]
        )
    assert near["score"] > 0.8 > 0.2 > far["score"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_ours_is_a_folder_of_theirs_with_the_same_vectors(
    tokenizer: Tokenizer, tiny_config: Any, tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    settings = EmbedSettings(pooling=pooling, normalize=normalize)
    path = write_checkpoint(tmp_path / "ours", "embed", tiny_config, tokenizer, (), settings)
    with bertfast.load(path, "torch") as model:
        ours = np.array([answer["embedding"] for answer in model.predict(TEXTS)])
    opened = theirs.SentenceTransformer(str(path), device="cpu")
    assert opened.max_seq_length == tiny_config.max_position_embeddings
    assert np.allclose(opened.encode(TEXTS), ours, atol=1e-6)
    opened.save(str(tmp_path / "theirs"))  # in the form that the installed version writes
    with bertfast.load(tmp_path / "theirs", "torch") as model:
        assert model.model.context.settings == settings
        assert model.model.context.max_length == tiny_config.max_position_embeddings
        again = np.array([answer["embedding"] for answer in model.predict(TEXTS)])
    assert np.allclose(again, ours, atol=1e-6)


def test_transformers_opens_ours_as_its_bert_model(encoder: Path) -> None:
    model, info = transformers.BertModel.from_pretrained(encoder, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = transformers.AutoTokenizer.from_pretrained(encoder)(TEXTS[:1], return_tensors="pt")
    with torch.inference_mode():
        mean = model.eval()(**tokens).last_hidden_state.mean(dim=1)
    with bertfast.load(encoder, "torch") as ours:
        vector = ours.predict(TEXTS[:1])[0]["embedding"]
    assert np.allclose(torch.nn.functional.normalize(mean)[0].numpy(), vector, atol=1e-6)


def test_what_is_written_names_the_pooling_for_every_version(encoder: Path) -> None:
    modules = json.loads((encoder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((encoder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]


def test_the_pooling_is_read_in_each_form(foreign: Path) -> None:
    file = foreign / "1_Pooling" / "config.json"
    for values, expected in (
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"word_embedding_dimension": 32}, "mean"),
    ):
        file.write_text(json.dumps(values))
        assert open_checkpoint(foreign).task_settings["pooling"] == expected


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pooling_mode": "max"}, "pools by max"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pools by cls and mean"),
        ({"pooling_mode": ["cls", "lasttoken"]}, "pools by cls and lasttoken"),
    ],
)
def test_another_pooling_is_refused_by_name(foreign: Path, values: dict[str, object], named: str) -> None:
    (foreign / "1_Pooling" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=f"{named}.*copy the folder without modules.json"):
        open_checkpoint(foreign)


def test_other_modules_are_refused_by_name_and_the_remedy_helps(foreign: Path) -> None:
    set_modules(foreign, "Transformer", "Pooling", "Dense", "Normalize")
    with pytest.raises(ArtifactError, match="Transformer, Pooling, Dense, Normalize.*without modules.json"):
        open_checkpoint(foreign)
    (foreign / "modules.json").unlink()
    with pytest.raises(ArtifactError, match="is BertModel, which has no head"):
        task_of(open_checkpoint(foreign))


def test_an_encoder_in_a_folder_of_its_own_is_refused(foreign: Path) -> None:
    set_modules(foreign, "Transformer", "Pooling", first_path="0_BERT")
    with pytest.raises(ArtifactError, match="keeps the encoder in 0_BERT"):
        open_checkpoint(foreign)


def test_a_prompt_before_every_text_is_refused(foreign: Path) -> None:
    file = foreign / "config_sentence_transformers.json"
    edit(file, prompts={"query": "query: ", "none": ""}, default_prompt_name="query")
    with pytest.raises(ArtifactError, match="the prompt 'query' \\('query: '\\)"):
        open_checkpoint(foreign)
    edit(file, default_prompt_name="none")
    assert open_checkpoint(foreign).task == "embed"


def test_lower_case_over_a_tokenizer_that_keeps_capitals_is_refused(foreign: Path) -> None:
    edit(foreign / "sentence_bert_config.json", do_lower_case=True)
    assert open_checkpoint(foreign).task == "embed"  # its tokenizer does that anyway
    values = json.loads((foreign / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False
    (foreign / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"do_lower_case true.*keeps capitals.*Lower your texts"):
        open_checkpoint(foreign)
    edit(foreign / "sentence_bert_config.json", do_lower_case=False)
    assert open_checkpoint(foreign).task == "embed"


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("modules.json", [{"path": ""}], "a module has no 'type'"),
        ("modules.json", [{"type": "x.Transformer"}], "a module has no 'path'"),
        ("modules.json", ["Transformer"], "it is no list of modules"),
        ("modules.json", 3, "it is no list of modules"),
        ("1_Pooling/config.json", [], "it holds no object"),
        ("sentence_bert_config.json", [], "it holds no object"),
        ("config_sentence_transformers.json", "x", "it holds no object"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length 'long'"),
    ],
)
def test_a_file_of_another_form_is_named(foreign: Path, name: str, values: object, named: str) -> None:
    (foreign / name).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=f"{name} .*{named}"):
        open_checkpoint(foreign)


def test_damaged_and_missing_files_are_named(foreign: Path) -> None:
    (foreign / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"1_Pooling/config.json is missing"):
        open_checkpoint(foreign)
    (foreign / "modules.json").write_text("[{")
    with pytest.raises(ArtifactError, match=r"modules.json is damaged"):
        open_checkpoint(foreign)


def test_the_length_is_theirs_or_the_tokenizer_s_and_never_more_than_the_positions(foreign: Path) -> None:
    edit(foreign / "sentence_bert_config.json", max_seq_length=40)
    assert open_checkpoint(foreign).max_length == 40
    edit(foreign / "sentence_bert_config.json", max_seq_length=None)
    edit(foreign / "tokenizer_config.json", model_max_length=50)
    assert open_checkpoint(foreign).max_length == 50
    edit(foreign / "tokenizer_config.json", model_max_length=10**30)
    assert open_checkpoint(foreign).max_length == 64


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_their_cross_encoder_opens_ours_with_the_same_scores(
    tokenizer: Tokenizer, tiny_config: Any, tmp_path: Path, activation: Any
) -> None:
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    settings = RerankSettings(activation=activation)
    path = write_checkpoint(tmp_path / "ours", "rerank", tiny_config, tokenizer, ("LABEL_0",), settings)
    with bertfast.load(path, "torch") as model:
        ours = [answer["score"] for answer in model.predict(PAIRS)]
    opened = theirs.CrossEncoder(str(path), device="cpu")
    assert np.allclose(opened.predict(PAIRS), ours, atol=1e-6)
    opened.save(str(tmp_path / "theirs"))
    with bertfast.load(tmp_path / "theirs", "torch") as model:
        assert (model.model.task.name, model.model.context.settings) == ("rerank", settings)
        assert [answer["score"] for answer in model.predict(PAIRS)] == pytest.approx(ours, abs=1e-6)


def test_a_cross_encoder_is_known_by_each_of_its_marks(reranker: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    shutil.copytree(reranker, path)
    (path / "manifest.json").unlink()
    config = json.loads((path / "config.json").read_text())
    assert open_checkpoint(path).task == "rerank"
    del config["sentence_transformers"]
    for mark, activation in (
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sbert_ce_default_activation_function": None}, "sigmoid"),
        ({"sentence_transformers": {"version": "4.1.0"}}, "sigmoid"),
    ):
        (path / "config.json").write_text(json.dumps(config | mark))
        assert open_checkpoint(path).task_settings == {"activation": activation}
    (path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(path).task is None
    edit(path / "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn="torch.nn.Tanh")
    with pytest.raises(ArtifactError, match=r"by torch.nn.Tanh; bertfast has Sigmoid, Identity"):
        open_checkpoint(path)
