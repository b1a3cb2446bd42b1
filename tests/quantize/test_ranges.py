from __future__ import annotations

import pytest
import torch

from bertfast.quantize.ranges import ranges


def rounding_error(values: torch.Tensor, reach: float) -> float:
    scale = reach / 127
    return float(((values / scale).round().clamp(-127, 127) * scale - values).square().mean())


def test_the_largest_magnitude_is_a_range_whatever_its_sign() -> None:
    assert ranges(torch.tensor([0.5, -3.0, 2.0]))["max"] == 3.0


def test_a_percentile_leaves_out_the_share_that_it_names() -> None:
    values = torch.arange(1.0, 100_001.0)
    found = ranges(values)
    for name, percent in (("percentile 99.9", 99.9), ("percentile 99.99", 99.99)):
        assert (values <= found[name]).float().mean() == pytest.approx(percent / 100, abs=2e-5)


def test_the_mse_range_is_about_as_good_as_the_best_of_many() -> None:
    values = torch.cat([torch.randn(100_000), torch.tensor([60.0])])
    best = min(rounding_error(values, reach) for reach in torch.linspace(1, 60, 200).tolist())
    assert rounding_error(values, ranges(values)["mse"]) < 1.2 * best
    assert ranges(values)["mse"] < 50


def test_the_entropy_range_cuts_a_lonely_outlier_and_keeps_an_even_distribution() -> None:
    bell = torch.cat([torch.randn(100_000), torch.tensor([40.0])])
    assert ranges(bell)["entropy"] < 10
    even = torch.rand(100_000)
    assert ranges(even)["entropy"] > 0.9


def test_values_that_are_all_zero_have_no_range_but_that() -> None:
    assert ranges(torch.zeros(4, 3)) == {"max": 0.0}
