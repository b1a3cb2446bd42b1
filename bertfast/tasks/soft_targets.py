"""What a student learns from a teacher's outputs beside the labels: one loss for each kind of output.

Every function takes the outputs of both by name, the targets and the temperature, and returns losses under the names,
and summed over the things, of the task's own losses.

Shapes: B rows, S tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bertfast.text.batch import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def one_of_many(student: Tensors, teacher: Tensors, targets: Tensors, temperature: float) -> dict[str, Tensor]:
    """Where one of the last axis is chosen (a class, a tag, the place of a token): the divergence of the teacher's
    softened probabilities from the student's, times the temperature squared (Hinton et al. 2015, 2).

    Summed over what has a label, by its weight; the mean where there are several outputs.
    """
    import torch

    each = torch.stack([_divergence(student[name], logits, temperature) for name, logits in teacher.items()]).mean(0)
    if "labels" in targets:
        each = each.masked_fill(targets["labels"] == IGNORE_INDEX, 0.0)
    return {"loss": (each * targets.get("weights", 1)).sum()}


def each_for_itself(student: Tensors, teacher: Tensors, targets: Tensors, temperature: float) -> dict[str, Tensor]:
    """Where each of the last axis is chosen or not: the same for two classes, summed over all of them by their
    weights."""
    import torch

    found, wanted = (torch.stack([logits["logits"], -logits["logits"]], dim=-1) / 2 for logits in (student, teacher))
    return {"loss": (_divergence(found, wanted, temperature) * targets.get("weights", 1)).sum()}


def same_numbers(student: Tensors, teacher: Tensors, targets: Tensors, temperature: float) -> dict[str, Tensor]:
    """Where the output is a number: the squared differences, summed; there is nothing to soften."""
    return {"loss": (student["logits"].float() - teacher["logits"].float()).square().sum()}


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence in nats over the last axis, times the temperature squared."""
    from torch.nn.functional import kl_div, log_softmax

    found, wanted = (log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    return kl_div(found, wanted, reduction="none", log_target=True).sum(-1) * temperature**2
