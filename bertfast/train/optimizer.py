"""AdamW with decoupled weight decay, and the linear schedule (Devlin et al. 2019, A.2)."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from bertfast.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """Fused AdamW; LayerNorm weights and all biases are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    return AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up, then linear decay to 0 after the last step."""
    warmup = round(total_steps * config.warmup_fraction)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (total_steps - step) / max(1, total_steps - warmup)
