from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bertfast import artifact
from bertfast.config import ModelConfig, Precision, TrainConfig
from bertfast.errors import ArtifactError, ConfigError, DivergenceError
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.tasks.task import NoSettings
from bertfast.text.batch import IGNORE_INDEX, Batch, TrainingBatch
from bertfast.text.corpus import Corpus
from bertfast.text.instances import InstanceSource
from bertfast.train import device, loop
from bertfast.train.device import compile_wanted, resolve
from bertfast.train.distributed import World
from bertfast.train.loop import optimizer_step
from bertfast.train.optimizer import make_optimizer
from bertfast.train.pretrain import PretrainSource, pretrain
from tests.conftest import TINY_PRETRAIN, TINY_SHAPE, alike, failing_after, same


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    pretrain(corpus, out, TINY_PRETRAIN, model_settings=TINY_SHAPE)
    return out


def test_pretraining_learns_and_says_so(corpus: Corpus, tmp_path: Path) -> None:
    config = TINY_PRETRAIN.model_copy(update={"max_steps": 120, "learning_rate": 3e-3, "log_every_steps": 10})
    result = pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE)
    assert result["heldout_mlm"] < result["unigram_entropy"] - 0.3
    assert set(result) >= {"heldout_nsp", "heldout_nsp_accuracy", "nsp_majority", "mlm_majority"}
    report = (tmp_path / "model" / "logs" / "report.md").read_text()
    assert all(words in report for words in ("sentences that repeat an earlier one", "packing efficiency", "95%"))
    lines = [json.loads(line) for line in (tmp_path / "model" / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train_mlm"] > lines[-2]["train_mlm"]
    assert lines[0]["real_tokens_per_s"] > 0
    assert list((tmp_path / "model" / "logs" / "tensorboard").iterdir())
    assert open_checkpoint(tmp_path / "model").task == "pretrain"
    assert not (tmp_path / "model.run").exists()


def test_the_same_run_gives_the_same_weights(corpus: Corpus, undisturbed: Path, tmp_path: Path) -> None:
    pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE)
    assert alike(undisturbed, tmp_path / "model")


def test_worker_processes_change_nothing(corpus: Corpus, undisturbed: Path, tmp_path: Path) -> None:
    config = TINY_PRETRAIN.model_copy(update={"workers": 1})
    pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE)
    assert alike(undisturbed, tmp_path / "model")


def test_an_evaluation_between_comes_before_the_state_of_its_step(corpus: Corpus, tmp_path: Path) -> None:
    """So that a kill in the middle of it does not lose it."""
    interrupt_after(5, corpus, tmp_path / "model", evaluate_every_steps=4)
    shutil.rmtree(tmp_path / "model.run" / "state-00000004")
    config = TINY_PRETRAIN.model_copy(update={"evaluate_every_steps": 4})
    pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE, resume=True)
    lines = (tmp_path / "model" / "logs" / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, lines) if "heldout_mlm" in row] == [4, 6]


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_stops_and_goes_on_ends_with_the_same_weights(
    corpus: Corpus, undisturbed: Path, tmp_path: Path, stop: int
) -> None:
    """After step 3 the newest state is that of step 2; after step 4 it is its own."""
    interrupt_after(stop, corpus, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ArtifactError, match="unfinished run.*--resume"):
        pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE)
    pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    assert alike(undisturbed, tmp_path / "model")
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "model" / "logs" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6, 6]


def ctrl_c_during(step: int, corpus: Corpus, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until a Ctrl-C that comes in the middle of a step, counted from 1."""
    real, done = loop.optimizer_step, 0

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "optimizer_step", interrupted)
        pretrain(corpus, out, TINY_PRETRAIN, model_settings=TINY_SHAPE)


@pytest.mark.parametrize("step", [5, 6])
def test_ctrl_c_ends_the_step_and_saves_it(
    corpus: Corpus, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle of the run, and in its last step."""
    before = signal.getsignal(signal.SIGINT)
    ctrl_c_during(step, corpus, tmp_path / "model", monkeypatch)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "model.run" / f"state-{step:08d}").is_dir()
    pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    assert alike(undisturbed, tmp_path / "model")


def test_ctrl_c_before_the_first_step_saves_the_beginning(
    corpus: Corpus, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.prefetched

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "prefetched", interrupted)
        pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE)
    assert (tmp_path / "model.run" / "state-00000000").is_dir()
    pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    assert alike(undisturbed, tmp_path / "model")


def test_a_state_that_cannot_be_cleared_is_not_gone_on_from(corpus: Corpus, tmp_path: Path) -> None:
    """One that was put on another disk, with a link to it."""
    interrupt_after(3, corpus, tmp_path / "model")
    state = tmp_path / "model.run" / "state-00000002"
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    config = TINY_PRETRAIN.model_copy(update={"keep_states": 9})
    with pytest.raises(OSError, match="symbolic link"):
        pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE, overwrite=True)


def test_resuming_what_has_ended_says_how_it_ended(corpus: Corpus, tmp_path: Path) -> None:
    first = pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    again = pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    assert again == first
    often = TINY_PRETRAIN.model_copy(update={"log_every_steps": 2})
    assert pretrain(corpus, tmp_path / "model", often, model_settings=TINY_SHAPE, resume=True) == first


@pytest.mark.parametrize(
    ("key", "value", "earlier"),
    [("seed", 3, "0"), ("learning_rate", 1e-4, "0.001"), ("precision", Precision.BF16, "'fp32'")],
)
def test_what_has_ended_does_not_go_on_with_other_settings(
    corpus: Corpus, undisturbed: Path, key: str, value: object, earlier: str
) -> None:
    other = TINY_PRETRAIN.model_copy(update={key: value})
    with pytest.raises(ConfigError, match=f"started with {key} = {earlier}, and now it is"):
        pretrain(corpus, undisturbed, other, model_settings=TINY_SHAPE, resume=True)


def test_a_killed_process_resumes_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    settings = {**TINY_PRETRAIN.model_dump(exclude_none=True), "max_steps": 60, "checkpoint_every_steps": 5}
    options = [
        f"--set={key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()
    ]
    options += [f"--set=model.{key}={value}" for key, value in TINY_SHAPE.items()]
    command = [sys.executable, "-m", "bertfast", "train", "pretrain", "--corpus", str(corpus.path), *options]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed.run").glob("state-*[0-9]")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "killed.run").glob("state-*[0-9]"))
    assert not (tmp_path / "killed").exists()
    subprocess.run([*command, "--out", str(tmp_path / "killed"), "--resume"], check=True, capture_output=True)
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    assert alike(tmp_path / "killed", tmp_path / "whole")


def interrupt_after(steps: int, corpus: Corpus, out: Path, *, resume: bool = False, **changes: object) -> None:
    """Run so many steps, until one fails."""
    with failing_after(steps):
        pretrain(corpus, out, TINY_PRETRAIN.model_copy(update=changes), model_settings=TINY_SHAPE, resume=resume)


def test_resuming_with_other_settings_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    interrupt_after(3, corpus, tmp_path / "model")
    other = TINY_PRETRAIN.model_copy(update={"weight_decay": 0.5})
    with pytest.raises(ConfigError, match=r"started with weight_decay = 0.01, and now it is 0.5"):
        pretrain(corpus, tmp_path / "model", other, model_settings=TINY_SHAPE, resume=True)


def test_a_run_that_diverges_goes_on_with_a_lower_rate(corpus: Corpus, tmp_path: Path) -> None:
    interrupt_after(3, corpus, tmp_path / "model")
    lower = TINY_PRETRAIN.model_copy(update={"learning_rate": 1e-4})
    with pytest.warns(UserWarning, match="goes on with learning_rate = 0.0001 instead of 0.001"):
        pretrain(corpus, tmp_path / "model", lower, model_settings=TINY_SHAPE, resume=True)
    rows = (tmp_path / "model" / "logs" / "metrics.jsonl").read_text().splitlines()
    rates = [row["learning_rate"] for row in map(json.loads, rows) if "learning_rate" in row]
    assert rates[1] > 5e-4 > 1e-4 >= rates[2]


def test_two_runs_do_not_share_a_directory(corpus: Corpus, tmp_path: Path) -> None:
    interrupt_after(3, corpus, tmp_path / "model")
    with (
        artifact.hold(tmp_path / "model.run", "training"),
        pytest.raises(ArtifactError, match="another process is training in .*model.run"),
    ):
        pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)


def alter(state: Path) -> None:
    file = state / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def tear(state: Path) -> None:
    file = state / artifact.MANIFEST
    file.write_bytes(file.read_bytes()[:100])


def lose(state: Path) -> None:
    (state / artifact.MANIFEST).unlink()


@pytest.mark.parametrize("damage", [alter, tear, lose])
def test_a_damaged_state_falls_back_to_the_one_before(
    corpus: Corpus,
    undisturbed: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    """One byte of the newest state is other than its hash says, or its manifest is torn, or gone."""
    interrupt_after(5, corpus, tmp_path / "model")
    older, newest = sorted((tmp_path / "model.run").glob("state-*"))
    assert (older.name, newest.name) == ("state-00000002", "state-00000004")
    damage(newest)
    with pytest.warns(UserWarning, match="goes on from an older state"):
        interrupt_after(3, corpus, tmp_path / "model", resume=True)
    assert [path.name for path in sorted((tmp_path / "model.run").glob("state-*"))] == [
        "state-00000002",
        "state-00000004",
        "state-00000004.damaged",
    ]
    pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)
    assert alike(undisturbed, tmp_path / "model")


def test_without_a_whole_state_a_run_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    interrupt_after(3, corpus, tmp_path / "model")
    (state,) = (tmp_path / "model.run").glob("state-*")
    alter(state)
    with pytest.raises(ArtifactError, match="SHA-256 differs.*No older state.*--overwrite"):
        pretrain(corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=True)


def resumed_is_undisturbed(corpus: Corpus, tmp_path: Path, **changes: object) -> bool:
    config = TINY_PRETRAIN.model_copy(update=changes)
    pretrain(corpus, tmp_path / "whole", config, model_settings=TINY_SHAPE)
    interrupt_after(3, corpus, tmp_path / "cut", **changes)
    pretrain(corpus, tmp_path / "cut", config, model_settings=TINY_SHAPE, resume=True)
    return alike(tmp_path / "whole", tmp_path / "cut")


def test_bf16_resumes_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    assert resumed_is_undisturbed(corpus, tmp_path, precision=Precision.BF16)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_in_bf16_resumes_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    assert resumed_is_undisturbed(corpus, tmp_path, precision=Precision.BF16, compile=True)


def test_a_run_directory_that_is_not_ours_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "model.run").mkdir()
    (tmp_path / "model.run" / "thesis.txt").write_text("precious")
    for resume, overwrite in ((True, False), (False, True)):
        with pytest.raises(ArtifactError, match="bertfast did not make it"):
            pretrain(
                corpus, tmp_path / "model", TINY_PRETRAIN, model_settings=TINY_SHAPE, resume=resume, overwrite=overwrite
            )
    assert (tmp_path / "model.run" / "thesis.txt").read_text() == "precious"


def losses_and_gradients(
    batches: list[TrainingBatch], shape: ModelConfig, idle: int = 0
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """One step's losses and the gradients that it used, without dropout."""
    torch.manual_seed(0)
    task = get_task("pretrain")
    model = task.build(shape, 2, NoSettings()).eval()
    config = TrainConfig(max_grad_norm=1e9, precision="fp32")
    optimizer = make_optimizer(model, config)
    trainer = loop.Trainer(task, NoSettings(), model, model, torch.device("cpu"), Precision.FP32)
    gradients: dict[str, torch.Tensor] = {}
    optimizer.zero_grad = lambda **_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters()})  # type: ignore[assignment,union-attr]
    counts = loop.count(task, batches)
    losses, _ = optimizer_step(trainer, trainer.losses, optimizer, batches, counts, config, idle=idle)
    return {name: float(loss) for name, loss in losses.items()}, gradients


def padded_batches(corpus: Corpus, **changes: object) -> list[TrainingBatch]:
    """The micro-batches of the first step, unpacked."""
    config = TINY_PRETRAIN.model_copy(update={"short_seq_prob": 0.9, **changes})
    instances = InstanceSource(corpus, np.arange(corpus.num_documents), config)
    return list(PretrainSource(instances, config, World(), None).micro_batches(0))


def test_micro_batches_change_nothing(corpus: Corpus, tiny_config: ModelConfig) -> None:
    whole = padded_batches(corpus)
    parts = padded_batches(corpus, micro_batch_tokens=64)
    assert (len(whole), len(parts)) == (1, 4)
    losses, gradients = losses_and_gradients(whole, tiny_config)
    split_losses, split_gradients = losses_and_gradients(parts, tiny_config)
    assert losses == pytest.approx(split_losses, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, split_gradients[name], rtol=1e-4, atol=1e-7), name


def test_nothing_is_learnt_in_an_idle_pass(corpus: Corpus, tiny_config: ModelConfig) -> None:
    batches = padded_batches(corpus, micro_batch_tokens=64)
    losses, gradients = losses_and_gradients(batches, tiny_config)
    idle_losses, idle_gradients = losses_and_gradients(batches, tiny_config, idle=2)
    assert losses == idle_losses
    assert same(gradients, idle_gradients)


def test_padding_does_not_count(corpus: Corpus, tiny_config: ModelConfig) -> None:
    """More padding, in the sequences and among the masked slots, leaves losses and gradients as they were."""
    (batch,) = padded_batches(corpus)
    losses, gradients = losses_and_gradients([batch], tiny_config)
    padded_losses, padded_gradients = losses_and_gradients([more_padding(batch)], tiny_config)
    assert losses == pytest.approx(padded_losses, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, padded_gradients[name], rtol=1e-4, atol=1e-7), name
    labels = batch.targets["masked_labels"]
    by_hand = -np.log(1 / tiny_config.vocab_size)
    assert (labels == IGNORE_INDEX).any()
    assert losses["mlm"] == pytest.approx(by_hand, rel=0.1)


def more_padding(batch: TrainingBatch, extra: int = 9) -> TrainingBatch:
    wide = {name: np.pad(array, ((0, 0), (0, extra))) for name, array in batch.batch.arrays.items()}
    length = batch.batch.input_ids.shape[1]
    positions = batch.targets["masked_positions"]
    targets = dict(batch.targets)
    targets["masked_positions"] = np.append(positions + positions // length * extra, np.zeros(5, np.int64))
    targets["masked_labels"] = np.append(targets["masked_labels"], np.full(5, IGNORE_INDEX))
    return TrainingBatch(Batch(**wide), targets)


def test_divergence_is_said(corpus: Corpus, tmp_path: Path) -> None:
    config = TINY_PRETRAIN.model_copy(update={"learning_rate": 1e30, "warmup_fraction": 0.0})
    with pytest.raises(DivergenceError, match="what is not finite is the gradient of .*go on with --resume"):
        pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE)


def test_without_a_compiler_training_runs_eagerly_with_one_warning(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    config = TINY_PRETRAIN.model_copy(update={"compile": True})
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler") as caught:
        pretrain(corpus, tmp_path / "model", config, model_settings=TINY_SHAPE)
    assert len([item for item in caught if "compiler" in str(item.message)]) == 1


def test_short_runs_are_not_compiled() -> None:
    assert not compile_wanted(TrainConfig(), steps=50)
    assert not compile_wanted(TrainConfig(compile=False), steps=10**6)


def test_on_a_cpu_batches_of_many_shapes_are_not_compiled_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpp_compiler", lambda: "c++")
    config = TrainConfig(device="cpu")
    assert resolve(config, 10**6, static_shapes=False).compile is False
    assert resolve(config, 10**6, static_shapes=True).compile is True
    asked = config.model_copy(update={"compile": True})
    assert resolve(asked, 10**6, static_shapes=False).compile is True


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_learns_as_an_eager_one(corpus: Corpus, tmp_path: Path) -> None:
    shape = TINY_SHAPE | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    results = [
        pretrain(
            corpus,
            tmp_path / str(compiled),
            TINY_PRETRAIN.model_copy(update={"compile": compiled}),
            model_settings=shape,
        )
        for compiled in (False, True)
    ]
    assert results[0]["heldout_mlm"] == pytest.approx(results[1]["heldout_mlm"], rel=1e-4)


def test_the_shape_comes_from_the_checkpoint_or_from_settings(corpus: Corpus, pretrained: Path, tmp_path: Path) -> None:
    start = open_checkpoint(pretrained)
    with pytest.raises(ConfigError, match="leave out"):
        pretrain(corpus, tmp_path / "m", TINY_PRETRAIN, model_settings=TINY_SHAPE, start=start)
    with pytest.raises(ConfigError, match="max_length 100 exceeds the model's max_position_embeddings 64"):
        pretrain(
            corpus, tmp_path / "m", TINY_PRETRAIN.model_copy(update={"max_length": 100}), model_settings=TINY_SHAPE
        )
    one_step = TINY_PRETRAIN.model_copy(update={"max_steps": 1})
    pretrain(corpus, tmp_path / "m", one_step, start=start)
    assert open_checkpoint(tmp_path / "m").config == start.config
