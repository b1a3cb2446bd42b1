from __future__ import annotations

import copy
import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bertfast.config import ModelConfig, TrainConfig
from bertfast.tasks import get_task
from bertfast.tasks.task import NoSettings
from bertfast.train.optimizer import Lamb, clip, freeze, learning_rate, make_optimizer, rate_factors, set_learning_rate

Array = npt.NDArray[np.float64]
SHAPES = ((5, 4), (4,), (3, 2), (2,))
LAMB = TrainConfig(optimizer="lamb", learning_rate=0.02, weight_decay=0.05, adam_beta2=0.99)


class Toy(nn.Module):
    """Two linear layers, so two tensors that are decayed and two biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))  # type: ignore[no-any-return]


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> float:
    """Fit a fixed linear map; what step `n` sees depends on `n` alone. Returns the last loss."""
    target = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0]]).T
    loss = torch.zeros(())
    for step in steps:
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


def lamb_by_hand(weight: Array, gradients: list[Array], config: TrainConfig, decayed: bool) -> Array:
    """Algorithm 2 of You et al. 2020 line by line for one tensor, in double precision."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, gradient in enumerate(gradients, 1):
        m = config.adam_beta1 * m + (1 - config.adam_beta1) * gradient
        v = config.adam_beta2 * v + (1 - config.adam_beta2) * gradient**2
        r = m / (1 - config.adam_beta1**t) / (np.sqrt(v / (1 - config.adam_beta2**t)) + config.adam_epsilon)
        if decayed:
            r = r + config.weight_decay * weight
        norms = np.linalg.norm(weight), np.linalg.norm(r)
        ratio = norms[0] / norms[1] if decayed and min(norms) > 0 else 1.0
        weight = weight - config.learning_rate * ratio * r
    return weight


@pytest.mark.parametrize("start", ["random", "zero"])
def test_lamb_is_the_algorithm_of_the_paper(start: str) -> None:
    """Gradients of very different sizes over ten steps; weights of norm 0, whose ratio is 1, too."""
    rng = np.random.default_rng(0)
    model = Toy()
    if start == "zero":
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    gradients = {
        name: [rng.normal(size=p.shape) * 10.0 ** rng.integers(-4, 2) for _ in range(10)] for name, p in before.items()
    }
    optimizer = make_optimizer(model, LAMB)
    for step in range(10):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step]).float()
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = lamb_by_hand(before[name], gradients[name], LAMB, decayed=not name.endswith("bias"))
        assert np.allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_restored_optimiser_goes_on_as_if_nothing_had_been(name: str) -> None:
    """Through the keys that a run's state holds: `step`, `exp_avg` and `exp_avg_sq` of each parameter."""
    config = TrainConfig.parse({"optimizer": name, "learning_rate": 0.01}, "test")
    whole = Toy()
    optimizer = make_optimizer(whole, config)
    train(whole, optimizer, range(5))
    resumed = Toy()
    resumed.load_state_dict(whole.state_dict())
    other = make_optimizer(resumed, config)
    for old, new in zip(whole.parameters(), resumed.parameters(), strict=True):
        state = optimizer.state[old]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        other.state[new] = {key: value.clone() for key, value in state.items()}
    train(whole, optimizer, range(5, 12))
    train(resumed, other, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_lamb_survives_torch_s_own_state_dict() -> None:
    whole, resumed = Toy(), Toy()
    optimizer, other = make_optimizer(whole, LAMB), make_optimizer(resumed, LAMB)
    train(whole, optimizer, range(5))
    resumed.load_state_dict(whole.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors otherwise
    assert train(whole, optimizer, range(5, 9)) == train(resumed, other, range(5, 9))


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.01), ("lamb", 0.02)])
def test_both_learn(name: str, rate: float) -> None:
    model = Toy()
    config = TrainConfig.parse({"optimizer": name, "learning_rate": rate, "weight_decay": 0.001}, "test")
    optimizer = make_optimizer(model, config)
    first = train(model, optimizer, range(1))
    assert train(model, optimizer, range(1, 400)) < first / 20


def test_a_parameter_without_a_gradient_is_left_alone_and_counts_no_step() -> None:
    model = Toy()
    optimizer = make_optimizer(model, LAMB)
    train(model, optimizer, range(2))
    kept = model.second.weight.detach().clone()
    optimizer.zero_grad()
    model.first(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.second.weight, kept)
    assert optimizer.state[model.second.weight]["step"] == 2
    assert optimizer.state[model.first.weight]["step"] == 3


@pytest.mark.parametrize(("name", "kind"), [("adamw", AdamW), ("lamb", Lamb)])
def test_layer_norm_and_biases_are_not_decayed(name: str, kind: type[Optimizer], tiny_config: ModelConfig) -> None:
    model = get_task("pretrain").build(tiny_config, 2, NoSettings())
    optimizer = make_optimizer(model, TrainConfig.parse({"optimizer": name}, "test"))
    assert type(optimizer) is kind
    decayed, plain = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert (decayed.get("layerwise"), plain.get("layerwise")) == ((True, False) if name == "lamb" else (None, None))
    assert all(names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)] for p in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def rates(**changes: object) -> list[float]:
    config = TrainConfig.parse({"learning_rate": 1.0, "warmup_fraction": 0.1, **changes}, "test")
    return [learning_rate(step, 100, config) for step in range(101)]


def test_warm_up_then_linear_decay_to_zero() -> None:
    values = rates()
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(values) == values[9] == values[10] == 1.0
    assert np.allclose(np.diff(values[10:]), -1 / 90)
    assert values[100] == 0


@pytest.mark.parametrize(
    ("decay", "half_way"), [("linear", 0.5), ("sqrt", 0.5**0.5), ("cosine", 0.5), ("constant", 1.0)]
)
def test_every_decay_starts_at_the_peak_and_never_rises(decay: str, half_way: float) -> None:
    values = rates(lr_decay=decay)
    assert values[10] == 1.0
    assert values[55] == pytest.approx(half_way)
    assert values[100] == pytest.approx(1.0 if decay == "constant" else 0.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[10:]))


def test_two_phases_can_share_one_line() -> None:
    """A first phase that stops at a tenth of its peak and a second that goes on from there: one decay to 0."""
    first = rates(lr_final_fraction=0.1)
    assert first[100] == pytest.approx(0.1)
    assert np.allclose(np.diff(first[10:]), -0.9 / 90)
    second = rates(learning_rate=0.1, warmup_fraction=0.0)
    assert second[0] == pytest.approx(first[100])


def test_lower_layers_have_a_smaller_share_of_the_rate(tiny_config: ModelConfig) -> None:
    model = get_task("classify").build(tiny_config, 2, get_task("classify").settings())
    config = TrainConfig.parse({"layer_lr_decay": 0.5, "learning_rate": 0.8}, "test")
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 0.4)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    expected = {
        "bert.embeddings.word_embeddings.weight": 0.05,
        "bert.embeddings.LayerNorm.bias": 0.05,
        "bert.encoder.layer.0.attention.self.query.weight": 0.1,
        "bert.encoder.layer.1.output.LayerNorm.weight": 0.2,
        "bert.pooler.dense.bias": 0.4,
        "classifier.weight": 0.4,
    }
    for name, share in expected.items():
        assert rate[id(model.get_parameter(name))] == pytest.approx(share), name
    assert len(rate) == len(list(model.parameters()))


@pytest.mark.parametrize(("layers", "trained_layers"), [(0, {"0", "1"}), (1, {"1"}), (2, set())])
def test_what_is_frozen_is_not_trained(layers: int, trained_layers: set[str], tiny_config: ModelConfig) -> None:
    model = get_task("classify").build(tiny_config, 2, get_task("classify").settings())
    freeze(model, layers)
    trained = set(rate_factors(model, 1.0))
    assert {name.split(".")[3] for name in trained if ".layer." in name} == trained_layers
    assert not any("embeddings" in name for name in trained)
    assert {"bert.pooler.dense.weight", "classifier.bias"} <= trained
    assert sum(len(group["params"]) for group in make_optimizer(model, TrainConfig()).param_groups) == len(trained)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_step_is_that_of_clipped_gradients(name: str, max_norm: float) -> None:
    """AdamW's second step shows it: the first one is the same whatever the gradients' scale."""
    found = []
    for alone in (True, False):
        model = Toy()
        optimizer = make_optimizer(model, TrainConfig.parse({"optimizer": name, "learning_rate": 0.1}, "settings"))
        for step, size in enumerate((100.0, 1e-3)):
            torch.manual_seed(step)
            loss = size * model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            parameters = list(model.parameters())
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            clip(optimizer, parameters, norm, max_norm, alone=alone)
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
