"""What a run's own figures say about it: alarms, the use of the hardware, and how sure an accuracy is.

Rows are those of `metrics.jsonl`, oldest first; every function passes over rows that lack the keys that it reads.
The loop feeds a `Watch` with each row that it logs and prints what comes back; the report replays the rows.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from bertfast.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

Row = Mapping[str, Any]

# MLM counts as stuck when its loss moves by less than this share between the halves of so many steps and is not below
# this share of the unigram entropy (in Megatron-LM#29 it was 0.93 of it); NSP counts as learnt when its loss is below
# this share of ln 2. A loss may stand once the learning rate is below this share of its peak.
PLATEAU_STEPS, PLATEAU_PROGRESS, PLATEAU_LEVEL, NSP_LEARNT, PLATEAU_RATE = 1000, 0.005, 0.9, 0.8, 0.5
_PLATEAU_ROWS = 4
# The gradient's norm is out of bounds when it is so many times its median in so many logged rows on end.
GRADIENT_FACTOR, _GRADIENT_ROWS, _GRADIENT_HISTORY, _GRADIENT_LEAST = 10.0, 3, 100, 20
LOADER_SHARE, _LOADER_ROWS = 0.05, 20


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong with a run, as of a step."""

    kind: Literal["plateau", "gradient", "loader"]
    step: int
    text: str


class Watch:
    """Sees a run's rows as they are logged and says once for each kind of alarm what is wrong.

    Args:
        config: the run's settings.
        total_steps: how many steps it is to take.
        unigram_entropy: nats (see `pretrain.unigram_entropy`); without it no plateau is looked for.
    """

    def __init__(self, config: TrainConfig, total_steps: int, unigram_entropy: float | None) -> None:
        self.config = config
        self.warmup_steps = round(total_steps * config.warmup_fraction)
        self.unigram_entropy = unigram_entropy
        self.raised: list[Alarm] = []
        self._rows: deque[Row] = deque(maxlen=2 * PLATEAU_STEPS)

    def see(self, row: Row) -> list[Alarm]:
        """The alarms that this row raises for the first time. After a resume, show it the rows that are kept first."""
        self._rows.append(row)
        found = [gradient_alarm(self._rows), loader_alarm(self._rows)]
        if self.unigram_entropy:
            found += [plateau_alarm(self._rows, self.unigram_entropy, self.warmup_steps, self.config.learning_rate)]
        known = {alarm.kind for alarm in self.raised}
        new = [alarm for alarm in found if alarm is not None and alarm.kind not in known]
        self.raised += new
        return new


def plateau_alarm(rows: Sequence[Row], unigram_entropy: float, warmup_steps: int, peak_rate: float) -> Alarm | None:
    """MLM stuck where guessing by frequency would be, while NSP is learnt.

    The failure of NVIDIA/Megatron-LM#29, huggingface/transformers#3983 and google-research/bert#746 (there: repeated
    lines, or too small a batch). That MLM waits near the unigram entropy is normal as long as NSP waits too.
    """
    known = [row for row in rows if "train_mlm" in row and "train_nsp" in row and row["step"] > warmup_steps]
    if len(known) < _PLATEAU_ROWS or known[-1]["step"] < warmup_steps + PLATEAU_STEPS:
        return None
    if known[-1].get("learning_rate", peak_rate) < PLATEAU_RATE * peak_rate:
        return None
    step = int(known[-1]["step"])
    window = max([row for row in known if row["step"] > step - PLATEAU_STEPS], known[-_PLATEAU_ROWS:], key=len)
    before, after = window[: len(window) // 2], window[len(window) // 2 :]
    mlm, nsp = fmean(row["train_mlm"] for row in after), fmean(row["train_nsp"] for row in after)
    stuck = mlm > (1 - PLATEAU_PROGRESS) * fmean(row["train_mlm"] for row in before)
    if not stuck or mlm < PLATEAU_LEVEL * unigram_entropy or nsp > NSP_LEARNT * math.log(2):
        return None
    return Alarm(
        "plateau",
        step,
        f"the MLM loss has stood at {mlm:.2f} for {PLATEAU_STEPS:,} steps, hardly better than guessing by frequency "
        f"({unigram_entropy:.2f}), while NSP is learnt ({nsp:.2f}, chance {math.log(2):.2f}). Look for duplicate lines "
        "in the corpus, labels that do not belong to the masked places, and a vocabulary that does not fit the text; "
        "else lower learning_rate, or raise global_batch_size or warmup_fraction.",
    )


def gradient_alarm(rows: Sequence[Row]) -> Alarm | None:
    """The gradient's norm far above its running median, several logged rows on end."""
    known = [row for row in rows if "grad_norm" in row][-_GRADIENT_HISTORY - _GRADIENT_ROWS :]
    if len(known) < _GRADIENT_LEAST + _GRADIENT_ROWS:
        return None
    usual = median(row["grad_norm"] for row in known[:-_GRADIENT_ROWS])
    least = min(row["grad_norm"] for row in known[-_GRADIENT_ROWS:])
    if least <= GRADIENT_FACTOR * usual:
        return None
    first, step = int(known[-_GRADIENT_ROWS]["step"]), int(known[-1]["step"])
    return Alarm(
        "gradient",
        step,
        f"since step {first} the gradient's norm is over {least:.3g}, and its median before was {usual:.3g}: training "
        "may be about to diverge. Lower learning_rate, or raise warmup_fraction; with bf16, try precision=fp32.",
    )


def loader_alarm(rows: Sequence[Row]) -> Alarm | None:
    """Too much of the time spent waiting for data: the median of `loader_wait_share` over the last rows."""
    known = [row for row in rows if "loader_wait_share" in row][-_LOADER_ROWS:]
    if len(known) < _LOADER_ROWS:  # the first step of every start waits
        return None
    share = median(row["loader_wait_share"] for row in known)
    if share <= LOADER_SHARE:
        return None
    return Alarm(
        "loader",
        int(known[-1]["step"]),
        f"{share:.0%} of the time is spent waiting for data, and {LOADER_SHARE:.0%} is the limit. Raise workers, and "
        "put the corpus on a local disk; on a CPU leave the loader a core: set threads to one less than there are.",
    )


def first_bad_parameter(model: nn.Module) -> str | None:
    """What is not finite in a model after a backward pass, such as "the gradient of cls.predictions.bias", or None.

    A weight comes before any gradient, since it spoils them all. Among the gradients it is the last in the model's
    order, which the backward pass reaches first: everything below it is spoilt by it. Ask before the gradients are
    clipped, since a norm that is not finite spoils them all. On sharded parameters this is a collective call: every
    rank gets the same answer.
    """
    import torch

    named = list(model.named_parameters())
    weights = [(f"the weight {name}", parameter.detach()) for name, parameter in named]
    gradients = [(f"the gradient of {name}", p.grad) for name, p in reversed(named) if p.grad is not None]
    tensors = weights + gradients
    if not tensors:
        return None
    finite = torch.stack([_all_finite(tensor) for _, tensor in tensors]).tolist()
    return next((what for (what, _), good in zip(tensors, finite, strict=True) if not good), None)


def _all_finite(tensor: Tensor) -> Tensor:
    finite = tensor.isfinite().all()
    return finite.full_tensor() if hasattr(finite, "full_tensor") else finite


def flops_per_token(config: ModelConfig, length: float, masked_fraction: float) -> float:
    """Floating-point operations that training needs for one real token: three times the forward pass.

    Matrix products only: 2L(4H^2 + 2HI) for the layers, 4LHS for attention, and the MLM head on masked places only,
    m(2H^2 + 2HV). BERT-base at 128 tokens, 20 of them masked: 0.546e9.

    Args:
        length: real tokens of a sequence. Over unequal sequences it is the mean over tokens, sum(S^2) / sum(S).
        masked_fraction: share of the tokens that the MLM head decodes.
    """
    layers, hidden = config.num_hidden_layers, config.hidden_size
    products = 2 * layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    attention = 4 * layers * hidden * length
    head = masked_fraction * (2 * hidden**2 + 2 * hidden * config.vocab_size)
    return 3 * (products + attention + head)


# Dense bf16 products in FLOP/s, from NVIDIA's data sheets (figures given with sparsity are halved); V100: fp16, it has
# no bf16. Of the entries whose words a device's name holds, the first one counts.
_PEAKS = {
    ("b200",): 2250e12,
    ("gh200",): 989e12,
    ("h200", "nvl"): 835e12,
    ("h200",): 989e12,
    ("h100", "nvl"): 835e12,
    ("h100", "pcie"): 756e12,
    ("h100",): 989e12,
    ("a100",): 312e12,
    ("a40",): 149.7e12,
    ("a30",): 165e12,
    ("a10",): 125e12,
    ("l40s",): 362e12,
    ("l40",): 181e12,
    ("l4",): 121e12,
    ("v100", "pcie"): 112e12,
    ("v100",): 125e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of the GPU that `torch.cuda.get_device_name` names; None where it is not known.

    A MIG slice has some of the peak only, and is not known.
    """
    words = set(re.split(r"[\s_-]+", device_name.lower()))
    if "mig" in words:
        return None
    return next((peak for needed, peak in _PEAKS.items() if words.issuperset(needed)), None)


def mfu(tokens_per_s: float, flops: float, device_name: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation, a share of 1: what the real tokens need over what the devices could do.

    Args:
        tokens_per_s: real tokens per second over all devices.
        flops: see `flops_per_token`.
    """
    peak = peak_flops(device_name)
    return None if peak is None else tokens_per_s * flops / (peak * devices)


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% confidence interval of an accuracy (Wilson 1927), as shares of 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
