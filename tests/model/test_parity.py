"""Our encoder against transformers' BERT: random tiny models, and the real checkpoint on real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bertfast.backends import relative_error
from bertfast.config import ModelConfig
from bertfast.model.encoder import BertModel
from bertfast.model.heads import BertForPreTraining, BertForSequenceClassification, BertForTokenClassification
from bertfast.model.weights import load_weights, open_checkpoint, save_checkpoint
from bertfast.tasks import get_task, task_of
from bertfast.tasks.task import NoSettings, text_or_pair
from bertfast.text.batch import Batch, pad
from bertfast.text.labelled import read_examples
from bertfast.text.tokenizer import Encoded, Tokenizer
from tests.conftest import write_checkpoint

TAGS = ("O", "B-person", "I-person")


def theirs_for(path: Path, kind: type) -> torch.nn.Module:
    return kind.from_pretrained(path, attn_implementation="eager").eval()  # type: ignore[attr-defined, no-any-return]


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.arrays.items()}


def ragged_batch(vocab_size: int, longest: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = []
    for length in (1, 2, 5, longest // 2, longest):
        ids = rng.integers(5, vocab_size, length).tolist()
        rows.append(Encoded(ids, [0] * (length // 2) + [1] * (length - length // 2)))
    return pad(rows, 0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_a_random_model_of_transformers_gives_the_same_hidden_states(
    tokenizer: Tokenizer, tmp_path: Path, activation: str
) -> None:
    torch.manual_seed(3)
    settings = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=50,
        hidden_act=activation,
    )
    theirs = transformers.BertModel(settings).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    ours = get_task("classify").build(checkpoint.config, 2, NoSettings()).eval()
    assert all(name.startswith("classifier") for name in load_weights(ours, tmp_path))
    batch = ragged_batch(tokenizer.vocab_size, 50)
    with torch.no_grad():
        hidden = ours.bert(**tensors(batch))  # type: ignore[operator, union-attr]
        expected = theirs(**tensors(batch))
    real = batch.attention_mask.astype(bool)
    assert relative_error(hidden.numpy()[real], expected.last_hidden_state.numpy()[real]) < 1e-5
    pooled = ours.bert.pooler(hidden).detach()  # type: ignore[operator, union-attr]
    assert relative_error(pooled.numpy(), expected.pooler_output.numpy()) < 1e-5


def test_layer_norm_epsilon_is_the_checkpoint_s() -> None:
    model = BertModel(
        ModelConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    norms = [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-12}


def test_our_classifier_opens_in_transformers(classifier: Path, tokenizer: Tokenizer) -> None:
    theirs = theirs_for(classifier, transformers.AutoModelForSequenceClassification)
    assert theirs.config.id2label == {0: "building", 1: "nature", 2: "tool"}
    ours = BertForSequenceClassification(open_checkpoint(classifier).config, 3).eval()
    assert load_weights(ours, classifier) == []
    batch = ragged_batch(tokenizer.vocab_size, 40)
    with torch.no_grad():
        error = relative_error(ours(**tensors(batch))["logits"].numpy(), theirs(**tensors(batch)).logits.numpy())
    assert error < 1e-5


def test_our_pretrained_model_opens_in_transformers(pretrained: Path, tokenizer: Tokenizer) -> None:
    theirs = theirs_for(pretrained, transformers.AutoModelForPreTraining)
    ours = BertForPreTraining(open_checkpoint(pretrained).config).eval()
    assert load_weights(ours, pretrained) == []
    batch = ragged_batch(tokenizer.vocab_size, 40)
    real = batch.attention_mask.astype(bool)
    with torch.no_grad():
        mine, expected = ours(**tensors(batch)), theirs(**tensors(batch))
        error = relative_error(mine["prediction_logits"].numpy()[real], expected.prediction_logits.numpy()[real])
        assert error < 1e-5
        assert relative_error(mine["seq_relationship_logits"].numpy(), expected.seq_relationship_logits.numpy()) < 1e-5
        positions = torch.tensor([0, 43, 160])
        gathered = ours(**tensors(batch), masked_positions=positions)["prediction_logits"]
    assert relative_error(gathered.numpy(), mine["prediction_logits"].flatten(0, 1)[positions].numpy()) < 1e-6
    assert transformers.AutoModel.from_pretrained(pretrained).config.hidden_size == 32


def test_a_model_saved_by_transformers_opens_in_ours(
    tokenizer: Tokenizer, tiny_bert_config: transformers.BertConfig, tmp_path: Path
) -> None:
    theirs = transformers.BertForPreTraining(tiny_bert_config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    ours = BertForPreTraining(checkpoint.config).eval()
    assert load_weights(ours, tmp_path) == []
    batch = ragged_batch(tokenizer.vocab_size, 30)
    real = batch.attention_mask.astype(bool)
    with torch.no_grad():
        mine, expected = ours(**tensors(batch))["prediction_logits"], theirs(**tensors(batch)).prediction_logits
    assert relative_error(mine.numpy()[real], expected.numpy()[real]) < 1e-5


def test_a_span_finder_of_transformers_opens_in_ours_and_ours_in_theirs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(4)
    shape = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    theirs = transformers.BertForQuestionAnswering(shape).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    task = task_of(checkpoint)
    assert task.name == "qa"
    ours = task.build(checkpoint.config, 0, task.settings()).eval()
    assert load_weights(ours, tmp_path / "theirs", complete=True) == []
    (tmp_path / "ours").mkdir()
    save_checkpoint(
        tmp_path / "ours", ours.state_dict(), checkpoint.config, tokenizer, task.architecture, checkpoint.labels
    )
    again = theirs_for(tmp_path / "ours", transformers.AutoModelForQuestionAnswering)
    assert set(again.state_dict()) == set(theirs.state_dict())
    batch = ragged_batch(tokenizer.vocab_size, 40)
    real = batch.attention_mask.astype(bool)
    with torch.no_grad():
        mine, expected, back = ours(**tensors(batch)), theirs(**tensors(batch)), again(**tensors(batch))
    for name in task.outputs:
        assert relative_error(mine[name].numpy()[real], expected[name].numpy()[real]) < 1e-5
        assert relative_error(mine[name].numpy()[real], back[name].numpy()[real]) < 1e-5


def test_the_loss_of_a_span_finder_is_that_of_transformers(tiny_config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    task = get_task("qa")
    ours = task.build(tiny_config, 0, task.settings()).eval()
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(**tiny_config.model_dump())).eval()
    theirs.load_state_dict(ours.state_dict())
    rows = [Encoded(np.arange(5 + row, 25 + row).tolist(), [0] * 9 + [1] * 11) for row in range(3)]
    inputs = tensors(pad(rows, 0))
    targets = {"start_positions": torch.tensor([0, 10, 12]), "end_positions": torch.tensor([0, 10, 17])}
    with torch.no_grad():
        loss = task.losses(task.forward(ours, inputs, targets), targets, task.settings())["loss"] / 3
        assert loss.item() == pytest.approx(theirs(**inputs, **targets).loss.item(), rel=1e-6)


def test_a_tagger_goes_to_transformers_and_back(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours_path, theirs_path = write_checkpoint(tmp_path / "a", "tag", tiny_config, tokenizer, TAGS), tmp_path / "b"
    theirs, report = transformers.AutoModelForTokenClassification.from_pretrained(
        ours_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert tuple(theirs.config.id2label.values()) == TAGS
    theirs.save_pretrained(theirs_path)
    tokenizer.save(theirs_path)
    batch = ragged_batch(tokenizer.vocab_size, 40)
    real = batch.attention_mask.astype(bool)
    for path in (ours_path, theirs_path):
        checkpoint = open_checkpoint(path)
        assert (task_of(checkpoint).name, checkpoint.labels) == ("tag", TAGS)
        ours = BertForTokenClassification(checkpoint.config, len(TAGS)).eval()
        assert load_weights(ours, path, complete=True) == []
        with torch.no_grad():
            mine, expected = ours(**tensors(batch))["logits"], theirs.eval()(**tensors(batch)).logits
        assert relative_error(mine.numpy()[real], expected.numpy()[real]) < 1e-5


def test_a_tagger_of_two_classes_has_the_names_that_transformers_leaves_out(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shape = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertForTokenClassification(shape).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert open_checkpoint(tmp_path).labels == ("LABEL_0", "LABEL_1")


def test_the_decoder_is_the_word_embedding(tiny_config: ModelConfig) -> None:
    model = BertForPreTraining(tiny_config)
    assert not [name for name in model.state_dict() if "decoder" in name]
    ids = torch.full((1, 4), 7)
    logits = model(ids, ids * 0 + 1, ids * 0, torch.tensor([1]))["prediction_logits"]
    logits[0, 11].backward()
    gradient = model.bert.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    assert gradient[11].abs().sum() > 0


def test_a_row_of_nothing_but_padding_gives_numbers(tiny_config: ModelConfig) -> None:
    model = BertModel(tiny_config).eval()
    ids = torch.zeros((2, 6), dtype=torch.int64)
    assert torch.isfinite(model(ids, ids, ids)).all()


@pytest.mark.data
def test_the_real_checkpoint_agrees_with_transformers_on_real_text(minilm: Path, data_folder: Path) -> None:
    checkpoint = open_checkpoint(minilm)
    ours = get_task("classify").build(checkpoint.config, 2, NoSettings()).eval()
    load_weights(ours, minilm)
    rows = read_examples(data_folder / "nli" / "mnli_dev_matched.tsv")[:24]
    encoded = checkpoint.tokenizer.encode([text_or_pair(row.request) for row in rows], 512)
    batch = pad(encoded, checkpoint.tokenizer.pad_id)
    theirs = theirs_for(minilm, transformers.AutoModel)
    with torch.no_grad():
        hidden = ours.bert(**tensors(batch)).numpy()  # type: ignore[operator, union-attr]
        expected = theirs(**tensors(batch)).last_hidden_state.numpy()
    real = batch.attention_mask.astype(bool)
    assert not real.all()
    assert relative_error(hidden[real], expected[real]) < 1e-5


def test_the_last_layer_for_first_tokens_alone_gives_their_states(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = BertModel(tiny_config).eval()
    ids = torch.randint(0, tiny_config.vocab_size, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [1]])).long()
    everything = model(ids, mask, torch.zeros_like(ids))
    assert torch.allclose(model(ids, mask, torch.zeros_like(ids), first_only=True), everything[:, :1], atol=1e-6)
