"""Training without the rows of the word embedding that no example touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertfast.config import FinetuneConfig, ModelConfig
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.text.tokenizer import Tokenizer
from bertfast.train import finetune as finetuning
from bertfast.train.finetune import finetune
from bertfast.train.vocabulary import WORD_EMBEDDINGS, restrict_vocabulary, tokens_in_use
from tests.conftest import TINY_FINETUNE, failing_after, labelled_rows, write_checkpoint, write_rows

CONFIG = TINY_FINETUNE.model_copy(update={"weight_decay": 0.5, "global_batch_size": 4})


def train_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_tokens_met", lambda start, *_: np.arange(start.config.vocab_size))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_lr_decay": 0.5},
        {"keep": "best", "evaluate_every_steps": 3},
        {"freeze_layers": 0},
        {"optimizer": "lamb"},
    ],
    ids=str,
)
def test_the_weights_are_those_of_training_the_whole_embedding(
    changes: dict[str, Any],
    tiny_config: ModelConfig,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    padded = tiny_config.model_copy(update={"vocab_size": tokenizer.vocab_size + 6})
    start = open_checkpoint(write_checkpoint(tmp_path / "start", "pretrain", padded, tokenizer, ()))
    rows, task = write_rows(tmp_path / "rows.jsonl", labelled_rows(24, 1)), get_task("classify")
    config = CONFIG.model_copy(update=changes)
    finetune(start, task, rows, rows, tmp_path / "cut", config)
    train_everything(monkeypatch)
    finetune(start, task, rows, rows, tmp_path / "whole", config)
    compare(tmp_path)


def test_a_rate_that_changed_on_the_way_counts_for_all_rows(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, task = open_checkpoint(pretrained), get_task("classify")
    rows = write_rows(tmp_path / "rows.jsonl", labelled_rows(24, 1))

    def cut_off_and_gone_on(out: Path) -> None:
        with failing_after(6):
            finetune(start, task, rows, rows, out, CONFIG)
        slower = CONFIG.model_copy(update={"learning_rate": 1e-5})
        with pytest.warns(UserWarning, match="goes on with learning_rate"):
            finetune(start, task, rows, rows, out, slower, resume=True)

    cut_off_and_gone_on(tmp_path / "cut")
    train_everything(monkeypatch)
    cut_off_and_gone_on(tmp_path / "whole")
    compare(tmp_path)


def compare(folder: Path) -> None:
    cut, whole = (read_tensors(folder / name / "model.safetensors") for name in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    for name, expected in whole.items():
        assert torch.allclose(cut[name], expected, atol=2e-6), name


def test_rows_stand_for_the_tokens_in_use(tiny_config: ModelConfig) -> None:
    model = get_task("classify").build(tiny_config, 2, get_task("classify").settings())
    embedding = model.get_submodule("bert.embeddings.word_embeddings")
    before = embedding.weight.detach().clone()  # type: ignore[union-attr]
    in_use = restrict_vocabulary(model, tokens_in_use([[7, 3], [3, 11, 0]], tiny_config.vocab_size))
    assert in_use.tokens.tolist() == [0, 3, 7, 11]
    assert in_use.rows([11, 0, 7]).tolist() == [3, 0, 2]
    with pytest.raises(AssertionError, match="not said to be in use"):
        in_use.rows([4])
    trained = embedding.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(trained[:-1], before[[0, 3, 7, 11]])  # type: ignore[index]
    assert torch.equal(trained[-1], torch.ones(tiny_config.hidden_size))  # type: ignore[index]


def test_what_no_example_holds_is_not_trained(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    real = finetuning.fit
    monkeypatch.setattr(
        finetuning, "fit", lambda model, *rest, **named: trained.append(model) or real(model, *rest, **named)
    )
    start = open_checkpoint(pretrained)
    rows = write_rows(tmp_path / "rows.jsonl", labelled_rows(4, 1))
    config: FinetuneConfig = CONFIG.model_copy(update={"max_steps": 1})
    finetune(start, get_task("classify"), rows, rows, tmp_path / "m", config)
    assert len(trained[0].state_dict()[WORD_EMBEDDINGS]) < start.config.vocab_size / 2


def test_a_model_that_is_on_another_device_is_cut_down_there(tiny_config: ModelConfig) -> None:
    """As a teacher is; `meta` stands for a GPU."""
    model = get_task("embed").build(tiny_config, 0, get_task("embed").settings()).to("meta")
    restrict_vocabulary(model, np.arange(5))
    assert model.get_parameter(WORD_EMBEDDINGS).shape == (6, tiny_config.hidden_size)
    assert model.get_parameter(WORD_EMBEDDINGS).is_meta
