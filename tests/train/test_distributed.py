"""Two processes on the CPU (gloo) learn what one learns."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertfast.config import ModelConfig, PretrainConfig
from bertfast.errors import ConfigError
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import open_checkpoint
from bertfast.text.corpus import Corpus
from bertfast.text.instances import InstanceSource, split_documents
from bertfast.train.distributed import World
from bertfast.train.pretrain import PretrainSource, packed_layout, pretrain, sample_sizes
from tests.conftest import TINY_PRETRAIN, TINY_SHAPE

STEPS = 40
SHAPE = TINY_SHAPE | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIG = TINY_PRETRAIN.model_copy(
    update={"max_steps": STEPS, "threads": 1, "micro_batch_tokens": 64, "short_seq_prob": 0.6}
)


def command(corpus: Corpus, out: Path, processes: int, config: PretrainConfig) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    values = config.model_dump(mode="json", exclude_none=True)
    options = [f"--set={key}={str(value).lower()}" for key, value in values.items()]
    options += [f"--set=model.{key}={value}" for key, value in SHAPE.items()]
    verb = ["-m", "bertfast", "train", "pretrain", "--corpus", str(corpus.path), "--out", str(out)]
    return [sys.executable, *(launch if processes > 1 else []), *verb, *options]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have; torchrun puts each in its own session."""
    listings = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for listing in listings for child in listing.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def kill_at_first_state(arguments: list[str], out: Path) -> None:
    """kill -9 of every process as soon as a state lies there."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=environment())
    while not list(out.with_name(out.name + ".run").glob("state-*[0-9]")) and process.poll() is None:
        time.sleep(0.005)
    started = descendants(process.pid)
    process.kill()
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    states = sorted(path.name for path in out.with_name(out.name + ".run").glob("state-*[0-9]"))
    assert states
    assert int(states[-1].removeprefix("state-")) < STEPS


def trajectory(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [(row["train_mlm"], row["train_nsp"]) for row in rows if "train_mlm" in row]


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "model"
    pretrain(corpus, out, CONFIG, model_settings=SHAPE)
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    assert len(trajectory(out)) == STEPS
    for ours, theirs in zip(trajectory(out), trajectory(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    weights = read_tensors(out / "model.safetensors")
    for name, tensor in read_tensors(alone / "model.safetensors").items():
        assert (weights[name] - tensor).norm() <= 1e-4 * tensor.norm() + 1e-6, name
    assert open_checkpoint(out).task == "pretrain"


def test_two_processes_learn_as_one_and_one_prints(corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    """DDP, killed, and carried on by FSDP: neither the loss nor the order of the data moves."""
    out = tmp_path / "model"
    kill_at_first_state(command(corpus, out, 2, CONFIG), out)
    carried_on = run([*command(corpus, out, 2, CONFIG.model_copy(update={"sharding": "fsdp"})), "--resume"])
    assert json.loads(carried_on.stdout)["checkpoint"] == str(out)
    assert_same_run(out, alone)


def test_a_run_cut_over_two_processes_goes_on_in_one(corpus: Corpus, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    cut = CONFIG.model_copy(update={"sharding": "fsdp"})
    kill_at_first_state(command(corpus, out, 2, cut), out)
    pretrain(corpus, out, cut, model_settings=SHAPE, resume=True)
    assert_same_run(out, alone)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_rows_with_padding_teach_two_processes_what_packed_ones_teach_one(
    corpus: Corpus, alone: Path, tmp_path: Path, sharding: str
) -> None:
    """Whose layers' gradients are written by hand (`model/by_hand.py`)."""
    out = tmp_path / "model"
    padded = CONFIG.model_copy(update={"packing": False, "sharding": sharding})
    run(command(corpus, out, 2, padded))
    assert_same_run(out, alone)


def test_ranks_may_have_unequal_numbers_of_micro_batches(corpus: Corpus) -> None:
    """What the runs above are to get through."""
    training, _ = split_documents(corpus, CONFIG.heldout_fraction, CONFIG.seed)
    instances = InstanceSource(corpus, training, CONFIG)
    config = CONFIG.model_copy(update={"device": "cpu"})
    shape = ModelConfig(vocab_size=corpus.tokenizer.vocab_size, **SHAPE)
    sources = [
        PretrainSource(instances, config, world, packed_layout(sample_sizes(instances), config, shape, world))
        for world in (World(0, 2), World(1, 2))
    ]
    counts = [[len(source.micro_batches(step)) for source in sources] for step in range(STEPS)]
    assert any(one != other for one, other in counts)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    assert World(0, 4).share(256) == 64
    with pytest.raises(ConfigError, match="global_batch_size 2 cannot be shared out over 3 processes.*fewer"):
        World(0, 3).share(2)
