"""Checkpoints of the shapes that are measured, with random weights: they cost the time that trained ones cost."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu.step import Run
from bertfast.config import ModelConfig
from bertfast.model.weights import save_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.text import tokenizer as tokenization

SHAPES = {
    "minilm": ModelConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert-base": ModelConfig(),
    "bert-large": ModelConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}  # fmt: skip
TINY = ModelConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
TASKS = {"sst2": "classify", "squad": "qa"}


def write_vocabulary(file: Path, size: int) -> Path:
    """A vocabulary of words without meaning."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,?"]
    words += [f"w{number}" for number in range(size - len(words))]
    file.write_text("\n".join(words) + "\n", encoding="utf-8")
    return file


def write_model(run: Run, shape_name: str, task_name: str, folder: Path) -> Path:
    """A checkpoint of a shape (in a dry run of a tiny one) for a task."""
    shape, task = TINY if run.dry else SHAPES[shape_name], get_task(task_name)
    torch.manual_seed(0)
    with torch.device(run.device):
        module = task.build(shape, 2, task.settings())
        for parameter in module.parameters():  # the outputs of a fresh model hardly differ
            parameter.data += 0.02 * torch.randn_like(parameter)
    path = folder / f"{shape_name}-{task_name}"
    path.mkdir()
    vocabulary = tokenization.load(write_vocabulary(folder / "vocab.txt", shape.vocab_size))
    weights = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    labels = ("0", "1") if task_name in ("classify", "tag") else ()
    save_checkpoint(path, weights, shape, vocabulary, task.architecture, labels)
    task.furnish(path, shape, Context(vocabulary, labels, shape.max_position_embeddings, task.settings()))
    return path
