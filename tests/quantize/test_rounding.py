from __future__ import annotations

import pytest
import torch

from bertfast.quantize.rounding import GRIDS, covariance, gptq, scales, to_steps

INT8 = GRIDS["int8"]


def correlated(tokens: int, width: int) -> torch.Tensor:
    """Inputs of which a few directions explain most, like those of a network."""
    torch.manual_seed(0)
    return torch.randn(tokens, 8) @ torch.randn(8, width) + 0.1 * torch.randn(tokens, width)


def test_each_output_has_the_scale_of_its_own_largest_weight() -> None:
    weight = torch.tensor([[0.5, -2.54], [0.0, 0.0], [1.27, 0.1]])
    assert scales(weight, INT8).tolist() == pytest.approx([0.02, 1.0, 0.01])
    assert to_steps(weight, scales(weight, INT8), INT8).tolist() == [[25, -127], [0, 0], [127, 10]]


def test_gptq_gives_whole_steps_in_range_and_half_the_output_error_of_the_nearest() -> None:
    inputs, weight = correlated(2000, 200), torch.randn(32, 200)
    scale = scales(weight, INT8)
    steps = gptq(weight, scale, covariance(inputs), INT8)
    assert torch.equal(steps, steps.round())
    assert steps.abs().max() <= 127

    def error(steps: torch.Tensor) -> float:
        return float((inputs @ (steps * scale[:, None] - weight).T).norm())

    assert error(steps) < 0.5 * error(to_steps(weight, scale, INT8))


def test_gptq_of_inputs_that_know_nothing_of_each_other_is_the_nearest() -> None:
    weight = torch.randn(8, 20)
    scale = scales(weight, INT8)
    assert torch.equal(gptq(weight, scale, torch.eye(20, dtype=torch.float64), INT8), to_steps(weight, scale, INT8))


def test_inputs_that_never_occur_do_not_break_the_covariance() -> None:
    inputs = correlated(50, 20)
    inputs[:, 3] = 0
    steps = gptq(torch.randn(4, 20), torch.full((4,), 0.05), covariance(inputs), INT8)
    assert torch.isfinite(steps).all()
