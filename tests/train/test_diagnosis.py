from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bertfast.config import ModelConfig, TrainConfig
from bertfast.train.diagnosis import (
    LOADER_SHARE,
    PLATEAU_STEPS,
    Row,
    Watch,
    accuracy_interval,
    first_bad_parameter,
    flops_per_token,
    mfu,
    peak_flops,
)
from bertfast.train.optimizer import learning_rate

ENTROPY, CHANCE, STEPS = 7.33, math.log(2), 10_000  # the entropy of Wikipedia under BERT's uncased vocabulary
CONFIG = TrainConfig(learning_rate=1e-3, warmup_fraction=0.05)
WARMUP = 500
Curve = Callable[[float], float]


def rows(mlm: Curve, nsp: Curve, last: int = 8000, every: int = 20) -> list[Row]:
    """Logged losses with the noise that the mean of 20 small steps has."""
    rng = np.random.default_rng(0)
    steps = range(every, last + 1, every)
    return [
        {"step": n, "train_mlm": mlm(n) * rng.normal(1, 0.01), "train_nsp": nsp(n) * rng.normal(1, 0.03)} for n in steps
    ]


def falling(start: float, end: float, begin: float, length: float) -> Curve:
    """A loss that stays at `start` until step `begin` and then nears `end`."""
    return lambda step: end + (start - end) * math.exp(-max(0.0, step - begin) / length)


def first_alarms(seen: list[Row], entropy: float | None = ENTROPY) -> list[tuple[str, int]]:
    watch = Watch(CONFIG, STEPS, entropy)
    told = [alarm for row in seen for alarm in watch.see(row)]
    assert told == watch.raised
    return [(alarm.kind, alarm.step) for alarm in told]


STUCK = falling(10.3, 6.8, 0, 150)
LEARNT = falling(CHANCE, 0.3, 600, 800)


@pytest.mark.parametrize("level", [6.8, 7.3, 7.6])
@pytest.mark.parametrize("every", [5, 20, 600])
def test_mlm_that_stands_still_while_nsp_is_learnt_raises_the_alarm_once(level: float, every: int) -> None:
    """At Megatron-LM#29's level, at transformers#3983's, and over the unigram entropy, however often it is logged."""
    ((kind, step),) = first_alarms(rows(falling(10.3, level, 0, 150), LEARNT, 5000, every))
    assert kind == "plateau"
    assert WARMUP + PLATEAU_STEPS <= step <= 4000


def test_the_plateau_alarm_says_what_to_look_for() -> None:
    watch = Watch(CONFIG, STEPS, ENTROPY)
    (alarm,) = [alarm for row in rows(STUCK, LEARNT) for alarm in watch.see(row)]
    for words in ("6.79", "7.33", "duplicate lines", "masked", "vocabulary", "learning_rate"):
        assert words in alarm.text


HEALTHY: dict[str, tuple[Curve, Curve]] = {
    "both wait, then both learn": (falling(7.3, 2.0, 4000, 3000), falling(CHANCE, 0.1, 4000, 2000)),
    "MLM learns slowly under a quick NSP": (lambda step: 7.5 - 0.2 * step / 1000, falling(CHANCE, 0.2, 200, 500)),
    "MLM has learnt and stands": (falling(10.3, 6.2, 0, 300), LEARNT),
    "neither learns": (STUCK, lambda step: CHANCE),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_other_curves_raise_no_plateau_alarm(name: str) -> None:
    assert first_alarms(rows(*HEALTHY[name])) == []


def test_a_loss_may_stand_once_the_learning_rate_is_low() -> None:
    seen = rows(STUCK, LEARNT)
    assert first_alarms([{**row, "learning_rate": 0.9e-3} for row in seen])
    assert first_alarms([{**row, "learning_rate": 0.4e-3} for row in seen]) == []


def test_a_run_that_was_measured_raises_no_alarm() -> None:
    """L2 H128 on 5,605 articles of Wikipedia, 8,192 tokens, batch 32 x 64, rate 1e-3: slow, but it learns."""
    steps = [200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200, 2400, 2500]
    mlm = [7.781, 7.052, 6.868, 6.767, 6.739, 6.668, 6.624, 6.585, 6.561, 6.560, 6.544, 6.524, 6.527]
    nsp = [0.693, 0.651, 0.646, 0.638, 0.636, 0.630, 0.620, 0.608, 0.596, 0.589, 0.584, 0.576, 0.569]
    norm = [1.218, 1.301, 1.497, 1.605, 1.674, 1.725, 1.871, 2.041, 2.091, 2.078, 2.065, 2.262, 2.160]
    rng = np.random.default_rng(0)
    watch = Watch(TrainConfig(learning_rate=1e-3, warmup_fraction=0.1), 2500, 6.969)
    for step in range(10, 2501, 10):
        row = {
            key: float(np.interp(step, steps, curve)) * rng.normal(1, 0.01)
            for key, curve in (("train_mlm", mlm), ("train_nsp", nsp), ("grad_norm", norm))
        }
        watch.see({"step": step, "learning_rate": learning_rate(step - 1, 2500, watch.config), **row})
    assert watch.raised == []


def test_without_the_entropy_or_nsp_no_plateau_is_looked_for() -> None:
    seen = rows(STUCK, LEARNT)
    assert first_alarms(seen, entropy=None) == []
    assert first_alarms([{"step": row["step"], "train_mlm": row["train_mlm"]} for row in seen]) == []


def gradients(*norms: float) -> list[Row]:
    return [{"step": 10 * number, "grad_norm": norm} for number, norm in enumerate(norms, 1)]


def test_a_gradient_far_above_its_median_raises_the_alarm_when_it_stays_there() -> None:
    usual = [1.0, 1.2, 0.8] * 10
    assert first_alarms(gradients(*usual, 30, 25, 20, 1.0)) == [("gradient", 330)]
    assert first_alarms(gradients(*usual, 300, 1.0, 300, 1.0, 300)) == []
    assert first_alarms(gradients(*usual, 9, 9, 9, 9)) == []
    assert first_alarms(gradients(*([100.0] * 5), *usual)) == []


def test_waiting_for_data_raises_the_alarm_and_a_slow_start_does_not() -> None:
    def waits(*shares: float) -> list[Row]:
        return [{"step": number, "loader_wait_share": share} for number, share in enumerate(shares, 1)]

    assert first_alarms(waits(*[LOADER_SHARE + 0.01] * 20)) == [("loader", 20)]
    assert first_alarms(waits(*[LOADER_SHARE + 0.01] * 19)) == []
    assert first_alarms(waits(0.9, 0.4, *[0.01] * 50)) == []


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model(torch.ones(1, 3)).sum().backward()
    return model


def test_the_first_bad_parameter_is_where_the_backward_pass_broke_or_the_weight_behind_it() -> None:
    model = two_layers()
    assert first_bad_parameter(model) is None
    first, second = model[0], model[2]
    first.weight.grad[0, 1] = torch.nan
    first.bias.grad[1] = torch.inf
    assert first_bad_parameter(model) == "the gradient of 0.bias"
    second.weight.grad[0, 0] = -torch.inf
    assert first_bad_parameter(model) == "the gradient of 2.weight"
    with torch.no_grad():
        second.bias[0] = torch.nan
    assert first_bad_parameter(model) == "the weight 2.bias"
    assert first_bad_parameter(nn.Tanh()) is None


LARGE = ModelConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


@pytest.mark.parametrize(("shape", "billions"), [(ModelConfig(), 0.546), (LARGE, 1.880)])
def test_training_needs_the_published_number_of_operations(shape: ModelConfig, billions: float) -> None:
    assert flops_per_token(shape, 128, 20 / 128) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_the_operations_are_those_that_torch_counts() -> None:
    """Three times what torch's counter sees in a forward pass, less the pooler and the NSP head, which we leave out."""
    from torch.utils.flop_counter import FlopCounterMode

    from bertfast.tasks import get_task
    from bertfast.tasks.task import NoSettings

    shape = ModelConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80
    )
    model = get_task("pretrain").build(shape, 2, NoSettings()).eval()
    ids = torch.ones(4, 24, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids, ids, torch.zeros_like(ids), masked_positions=torch.arange(12))
    pooler_and_nsp = 4 * (2 * 32 * 32 + 2 * 32 * 2)
    forward = (counter.get_total_flops() - pooler_and_nsp) / ids.numel()
    assert flops_per_token(shape, 24, 12 / 96) == pytest.approx(3 * forward)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10G", None),
        ("AMD EPYC", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_mfu_is_the_share_of_the_peak_of_all_devices() -> None:
    assert mfu(1e6, 0.5e9, "NVIDIA H100 80GB HBM3", devices=2) == pytest.approx(0.5e15 / 1978e12)
    assert mfu(1e6, 0.5e9, "a toaster") is None


def test_the_interval_is_wilson_s() -> None:
    """Against the closed form (Wilson 1927), and at the ends, where a normal approximation would leave [0, 1]."""
    z, n, p = 1.959964, 512, 356 / 512
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert accuracy_interval(356, n) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert accuracy_interval(0, 10)[0] == 0
    assert accuracy_interval(10, 10)[1] == 1
