"""Training without the rows of the word embedding that no example touches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bertfast.config import ModelConfig
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.train import finetune as finetuning
from bertfast.train.finetune import finetune
from bertfast.train.vocabulary import WORD_EMBEDDINGS, restrict_vocabulary
from tests.conftest import TINY_FINETUNE, labelled_rows, write_rows


def test_the_weights_are_those_of_training_the_whole_embedding(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", labelled_rows(24, 1))
    config = TINY_FINETUNE.model_copy(update={"weight_decay": 0.5, "global_batch_size": 4})
    start, task = open_checkpoint(pretrained), get_task("classify")
    finetune(start, task, rows, rows, tmp_path / "cut", config)
    everything = [range(start.config.vocab_size)]
    monkeypatch.setattr(finetuning, "_sequences_in_use", lambda *_: everything)
    finetune(start, task, rows, rows, tmp_path / "whole", config)
    cut, whole = (read_tensors(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    before = read_tensors(pretrained / "model.safetensors")[WORD_EMBEDDINGS]
    assert (whole[WORD_EMBEDDINGS] - before).abs().max() > 1e-3
    for name, expected in whole.items():
        assert torch.allclose(cut[name], expected, atol=2e-6), name


def test_rows_stand_for_the_tokens_in_use(tiny_config: ModelConfig) -> None:
    model = get_task("classify").build(tiny_config, 2, get_task("classify").settings())
    embedding = model.get_submodule("bert.embeddings.word_embeddings")
    before = embedding.weight.detach().clone()  # type: ignore[union-attr]
    in_use = restrict_vocabulary(model, [[7, 3], [3, 11, 0]])
    assert in_use.tokens.tolist() == [0, 3, 7, 11]
    assert [in_use.row_of(token) for token in (0, 11)] == [0, 3]
    assert torch.equal(embedding.weight, before[torch.from_numpy(np.array([0, 3, 7, 11]))])  # type: ignore[arg-type]
