"""Losses over all pairs of a step. They are no sums over rows, so a step's pairs go through the model together.

They compute in fp32 whatever autocast says: at a scale of 20, bfloat16 would round a cosine by more than a step of
training moves it.

Shapes: N pairs, M candidates, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosines(first_NH: Tensor, second_NH: Tensor) -> Tensor:
    """The cosine of each vector with its partner, float32 [N]."""
    return functional.cosine_similarity(first_NH.float(), second_NH.float(), dim=-1)


def cosine_matrix(first_NH: Tensor, second_MH: Tensor) -> Tensor:
    """The cosine of each vector with every one of the others, float32 [N, M]."""
    with torch.autocast(first_NH.device.type, enabled=False):
        first, second = (functional.normalize(vectors.float(), dim=-1) for vectors in (first_NH, second_MH))
        return first @ second.T


def info_nce(similarity_NM: Tensor, excluded_NM: Tensor, scale: float) -> Tensor:
    """Cross-entropy of each row over its candidates, summed over the rows (van den Oord et al. 2018, eq. 4).

    The right candidate of row i is candidate i; all others are in-batch negatives.

    Args:
        similarity_NM: cosines, M >= N.
        excluded_NM: bool, True where a candidate is neither right nor wrong; never on the diagonal.
        scale: what the cosines are multiplied by, the inverse of the temperature.
    """
    logits = (similarity_NM.float() * scale).masked_fill(excluded_NM, float("-inf"))
    right = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, right, reduction="sum")


def cosent(similarity_N: Tensor, grades_N: Tensor, scale: float) -> Tensor:
    """log(1 + sum exp(scale * (cos_j - cos_i))) over all i, j with grade_i > grade_j (Su 2022, "CoSENT").

    Only the order of the grades counts. Equal grades are not compared; where all are equal the loss is 0.

    Args:
        similarity_N: the cosine of each pair.
        grades_N: how alike the two texts of each pair are said to be, on any scale.
    """
    scaled = similarity_N.float() * scale
    excess_NN = scaled[None, :] - scaled[:, None]
    ordered_NN = grades_N[:, None] > grades_N[None, :]
    terms = excess_NN.masked_fill(~ordered_NN, float("-inf")).flatten()
    return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)
