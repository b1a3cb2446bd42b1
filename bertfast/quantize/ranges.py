"""How far the INT8 range of a tensor is to reach: the usual answers, from its values.

A range that holds the largest value wastes steps on outliers; one that cuts them falsifies them. Which is worse is
seen only in what the product makes of it (see `fit`), so these are candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bertfast.quantize.rounding import GRIDS

_LARGEST = GRIDS["int8"].largest
_BINS = 2048
_PERCENTILES = (99.9, 99.99)
_CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def ranges(values: Tensor) -> dict[str, float]:
    """The largest magnitude that is to be represented, by method, for float32 values of any shape.

    `max`; percentiles of the magnitudes; `mse`, which makes the mean squared error of rounding and cutting the least;
    `entropy`, which loses the least information (Kullback-Leibler divergence of the histograms, as in NVIDIA's
    calibration of 2017).
    """
    magnitudes = values.abs().flatten()
    largest = float(magnitudes.max())
    if largest == 0:
        return {"max": 0.0}
    found = {"max": largest}
    for percent in _PERCENTILES:
        above = max(1, round(len(magnitudes) * (1 - percent / 100)))
        found[f"percentile {percent:g}"] = float(torch.topk(magnitudes, above).values[-1])
    counts = torch.histc(magnitudes, _BINS, min=0, max=largest)
    found |= {f"max x {cut:g}": cut * largest for cut in _CUTS}
    found["mse"] = largest * _least_squares(counts) / _BINS
    found["entropy"] = largest * _least_divergence(counts) / _BINS
    return {method: reach for method, reach in found.items() if reach > 0}


def _least_squares(counts: Tensor) -> int:
    """The number of bins to keep that makes the mean squared error the least."""
    centres = torch.arange(_BINS) + 0.5
    reaches = torch.arange(_BINS // 8, _BINS + 1, 8)
    rounding = (reaches / _LARGEST) ** 2 / 12
    cut = (centres[None] - reaches[:, None]).clamp(min=0) ** 2
    kept = centres[None] <= reaches[:, None]
    errors = (torch.where(kept, rounding[:, None], cut) * counts[None]).sum(dim=1)
    return int(reaches[errors.argmin()])


def _least_divergence(counts: Tensor) -> int:
    """The number of bins to keep whose histogram INT8 represents best; what is cut joins the last bin."""
    steps = int(_LARGEST) + 1
    reaches = range(_BINS // 8, _BINS + 1, steps)
    divergences = [_divergence(counts, reach, steps) for reach in reaches]
    return reaches[int(torch.tensor(divergences).argmin())]


def _divergence(counts: Tensor, reach: int, steps: int) -> float:
    kept = counts[:reach].clone()
    there = kept > 0
    step_of_bin = torch.arange(reach) * steps // reach
    sums = torch.zeros(steps).index_add(0, step_of_bin, kept)
    filled = torch.zeros(steps).index_add(0, step_of_bin, there.float())
    represented = torch.where(there, (sums / filled.clamp(min=1))[step_of_bin], torch.zeros(()))
    kept[-1] += counts[reach:].sum()
    wanted, represented = kept / kept.sum(), represented / represented.sum()
    both = (wanted > 0) & (represented > 0)
    lost = wanted[(wanted > 0) & ~both].sum()  # what nothing represents
    return float((wanted[both] * (wanted[both] / represented[both]).log()).sum() + lost * torch.log(torch.tensor(1e6)))
