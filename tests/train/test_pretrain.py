"""What a pretraining run refuses before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bertfast.config import ModelConfig
from bertfast.errors import ArtifactError, ConfigError
from bertfast.model.weights import open_checkpoint
from bertfast.text import tokenizer as tokenization
from bertfast.text.corpus import Corpus, open_corpus
from bertfast.train import pretrain as room
from bertfast.train.pretrain import pretrain
from tests.conftest import TINY_PRETRAIN, write_checkpoint


def test_a_corpus_that_was_altered_is_refused(
    corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(corpus.path, tmp_path / "c")
    shard = tmp_path / "c" / "tokens-00001.bin"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    altered = open_corpus(tmp_path / "c")
    with pytest.raises(ArtifactError, match=r"tokens-00001\.bin is not the file that its manifest names"):
        pretrain(altered, tmp_path / "m", TINY_PRETRAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    monkeypatch.setattr(room, "_VERIFIED_BYTES", 1000)
    shape = tiny_config.model_dump(exclude={"vocab_size", "pad_token_id"})
    one_step = TINY_PRETRAIN.model_copy(update={"max_steps": 1})
    pretrain(altered, tmp_path / "m", one_step, model_settings=shape)


def test_a_corpus_of_another_vocabulary_than_the_checkpoint_s_is_refused(
    corpus: Corpus, documents: list[str], tiny_config: ModelConfig, tmp_path: Path
) -> None:
    other = tokenization.train(lambda: documents, 150, lowercase=False)
    config = tiny_config.model_copy(update={"vocab_size": other.vocab_size})
    start = open_checkpoint(write_checkpoint(tmp_path / "start", "pretrain", config, other, ()))
    with pytest.raises(ConfigError, match=r"built with another vocabulary than .*start has. Build it with --tokenizer"):
        pretrain(corpus, tmp_path / "m", TINY_PRETRAIN, start=start)
