"""AdamW and LAMB, which parameters they decay, and the learning rate's schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from bertfast.config import TrainConfig

# What is left of the learning rate when the share `left` of the steps after the warm-up is still to come.
_DECAY: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "sqrt": math.sqrt,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
    "constant": lambda left: 1.0,
}

_EMBEDDINGS = "bert.embeddings."
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")


class Lamb(Optimizer):
    """LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", algorithm 2).

    Adam's step with bias correction and decoupled weight decay, scaled for each tensor to `lr` times the tensor's own
    norm. The scale is not bounded (the paper's phi is the identity), and it is 1 where a norm is 0.

    As in the authors' code and in NVIDIA's (apex `FusedLAMB` with `use_nvlamb=False`), tensors that are not decayed
    take Adam's step unscaled: groups with `layerwise=False`. The paper's text scales every tensor; for a bias that
    starts at 0 that would be no scale at all. NVIDIA's clip of the global gradient norm is the training loop's.

    The state has AdamW's keys: `step` (fp32 [], on the CPU, so that reading it waits for no device), `exp_avg` and
    `exp_avg_sq`, both of the parameter's shape.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and of its square.
        eps: what is added to the root of the second average.
        weight_decay: how much of the weight is added to Adam's step.
        layerwise: whether a tensor's step is scaled to its norm.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        layerwise: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "layerwise": layerwise}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every parameter that has a gradient; returns what `closure` returns, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            updates = self._adam_step(weights, group["betas"], group["eps"])
            if group["weight_decay"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            if group["layerwise"]:
                torch._foreach_mul_(updates, _trust_ratios(weights, updates))
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss

    def _adam_step(self, weights: list[Tensor], betas: tuple[float, float], eps: float) -> list[Tensor]:
        """Move the averages on and return Adam's step, not yet times the learning rate."""
        beta1, beta2 = betas
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
                }
        states = [self.state[weight] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] = state["step"].cpu() + 1  # a restored one may lie on the device
        steps = [state["step"].item() for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(averages, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, roots)
        return list(updates)


def _trust_ratios(weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Each weight's norm over its update's, or 1 where one of them is 0; nothing is read back from the device."""
    norms, steps = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
    return list(torch.where((norms > 0) & (steps > 0), norms / steps, torch.ones_like(norms)).unbind())


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Fused AdamW, or LAMB, for the parameters that are trained; LayerNorm weights and all biases are not decayed."""
    groups = _parameter_groups(model, config)
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
    return AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)


def clip(optimizer: Optimizer, parameters: list[nn.Parameter], norm: Tensor, max_norm: float, *, alone: bool) -> None:
    """Have the optimizer's next step see gradients whose norm is `max_norm` at most.

    Fused AdamW on a CPU scales them on its way, as it does for loss scaling, which saves a pass over all of them. The
    scale stays until the next call.

    Args:
        norm: of all gradients together, a scalar.
        alone: whether one process trains; parameters are then whole.
    """
    if alone and norm.device.type == "cpu" and optimizer.defaults.get("fused"):
        setattr(optimizer, "grad_scale", (norm / max_norm).clamp(min=1))  # noqa: B010
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups of one weight decay and one `factor`: the share of the learning rate that their parameters have."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, factor in rate_factors(model, config.layer_lr_decay).items():
        decayed = not name.endswith("bias") and "LayerNorm" not in name
        groups.setdefault((factor, decayed), []).append(model.get_parameter(name))
    return [
        {
            "params": parameters,
            "factor": factor,
            "lr": config.learning_rate * factor,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        | ({"layerwise": decayed} if config.optimizer == "lamb" else {})
        for (factor, decayed), parameters in groups.items()
    ]


def rate_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """The share of the learning rate of each parameter that is trained (Howard and Ruder 2018, 3.2, "discriminative
    fine-tuning").

    Layer i of L, counted from 0, has `decay` to the power of L - i, the embeddings that of L + 1, and what stands on
    the encoder 1.
    """
    levels = {name: _level(name) for name, _ in model.named_parameters()}
    top = 1 + max((level for level in levels.values() if level < math.inf), default=-1)
    trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: decay ** (top - min(levels[name], top)) for name in trained}


def freeze(model: nn.Module, layers: int) -> None:
    """Keep the embeddings and so many of the lowest layers as they are: they get neither gradients nor moments."""
    for name, parameter in model.named_parameters():
        if _level(name) < layers:
            parameter.requires_grad_(False)


def _level(name: str) -> float:
    """How high in the model a parameter stands: -1 in the embeddings, i in layer i, infinity above the layers."""
    if layer := _LAYER.match(name):
        return int(layer[1])
    return -1 if name.startswith(_EMBEDDINGS) else math.inf


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group of `make_optimizer` its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up to `config.learning_rate`, then decay.

    The decay begins where the warm-up ends and reaches `lr_final_fraction` of the peak after the last step. (The
    reference and NVIDIA count the decay from step 0 and so fall off a little at the end of the warm-up.)
    """
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    left = _DECAY[config.lr_decay]((total_steps - step) / max(1, total_steps - warmup))
    return config.learning_rate * (config.lr_final_fraction + (1 - config.lr_final_fraction) * left)
