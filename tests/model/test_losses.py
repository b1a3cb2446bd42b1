from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bertfast.model.losses import cosent, cosine_matrix, cosines, info_nce


def nothing_excluded(similarity: Tensor) -> Tensor:
    return torch.zeros_like(similarity, dtype=torch.bool)


def test_info_nce_is_the_cross_entropy_of_finding_the_own_pair() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.4, 0.3]])
    expected = -math.log(math.exp(9) / (math.exp(9) + math.exp(1))) - math.log(
        math.exp(3) / (math.exp(4) + math.exp(3))
    )
    assert info_nce(similarity, nothing_excluded(similarity), 10.0).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_chance_is_the_logarithm_of_the_candidates() -> None:
    similarity = torch.full((4, 12), 0.3)
    assert info_nce(similarity, nothing_excluded(similarity), 20.0).item() == pytest.approx(4 * math.log(12), rel=1e-6)


def test_an_excluded_candidate_changes_neither_loss_nor_gradient() -> None:
    similarity = torch.tensor([[0.2, 0.9, 0.1], [0.1, 0.5, 0.3]], requires_grad=True)
    excluded = torch.tensor([[False, True, False], [False, False, False]])
    loss = info_nce(similarity, excluded, 5.0)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == 0
    terms = [math.log(1 + math.exp(5 * (0.1 - 0.2))), math.log(1 + math.exp(5 * -0.4) + math.exp(5 * -0.2))]
    assert loss.item() == pytest.approx(sum(terms), rel=1e-5)


def test_cosent_sums_over_the_pairs_that_are_in_order() -> None:
    similarity, grades = torch.tensor([0.5, 0.7, 0.2]), torch.tensor([5.0, 3.0, 3.0])
    expected = math.log(1 + math.exp(20 * (0.7 - 0.5)) + math.exp(20 * (0.2 - 0.5)))
    assert cosent(similarity, grades, 20.0).item() == pytest.approx(expected, rel=1e-5)


def test_cosent_knows_only_the_order_of_the_grades() -> None:
    similarity, grades = torch.rand(9), torch.tensor([0.0, 1, 1, 2, 3, 3, 4, 5, 0])
    assert cosent(similarity, grades, 20.0) == cosent(similarity, grades**3 - 7, 20.0)


@pytest.mark.parametrize("count", [1, 4])
def test_cosent_learns_nothing_where_all_grades_are_equal(count: int) -> None:
    similarity = torch.rand(count, requires_grad=True)
    loss = cosent(similarity, torch.ones(count), 20.0)
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad is not None
    assert similarity.grad.tolist() == [0.0] * count


def test_cosent_draws_the_better_pair_together() -> None:
    similarity = torch.tensor([0.1, 0.8], requires_grad=True)
    cosent(similarity, torch.tensor([1.0, 0.0]), 20.0).backward()
    assert similarity.grad is not None
    assert similarity.grad[0] < 0 < similarity.grad[1]


def test_cosines_are_those_of_the_vectors_whatever_their_lengths() -> None:
    first, second = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [0.5, 0.0]])
    assert cosines(first, second).tolist() == pytest.approx([0.96, 0.0])
    assert cosine_matrix(first, second).flatten().tolist() == pytest.approx([0.96, 0.6, 0.6, 0.0])


def test_autocast_does_not_round_the_cosines() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(8, 64), torch.randn(8, 64)
    plain = cosine_matrix(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine_matrix(first, second), plain)
        assert torch.equal(cosines(first, second), cosines(first, second).float())
        assert (first @ second.T).dtype == torch.bfloat16
