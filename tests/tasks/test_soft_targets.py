"""What a student learns from a teacher's outputs, against the formulas by hand in double precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bertfast.tasks import get_task
from bertfast.tasks.soft_targets import each_for_itself, one_of_many, same_numbers
from bertfast.text.batch import IGNORE_INDEX

Array = npt.NDArray[np.float64]
RNG = np.random.default_rng(0)


def softened(logits: Array, temperature: float) -> Array:
    exponentials = np.exp(logits / temperature)
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def divergence(student: Array, teacher: Array, temperature: float) -> Array:
    p, q = softened(teacher, temperature), softened(student, temperature)
    return np.asarray((p * np.log(p / q)).sum(-1) * temperature**2)


def pair(*shape: int) -> tuple[Array, Array]:
    return RNG.normal(size=shape) * 2, RNG.normal(size=shape) * 2


def tensors(**arrays: npt.NDArray[np.generic]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_classes_by_their_weights() -> None:
    student, teacher = pair(4, 3)
    weights = np.array([1.0, 0.5, 2.0, 0.0])
    targets = tensors(labels=np.array([0, 1, 2, 0]), weights=weights)
    loss = one_of_many(tensors(logits=student), tensors(logits=teacher), targets, 3.0)["loss"]
    assert float(loss) == pytest.approx((weights * divergence(student, teacher, 3.0)).sum(), rel=1e-5)


def test_tags_where_there_are_labels() -> None:
    student, teacher = pair(2, 5, 3)
    labels = np.array([[1, IGNORE_INDEX, 2, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 0, 0, IGNORE_INDEX]])
    loss = one_of_many(tensors(logits=student), tensors(logits=teacher), tensors(labels=labels), 2.0)["loss"]
    expected = divergence(student, teacher, 2.0)[labels != IGNORE_INDEX].sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_places_of_two_outputs_and_masked_ones() -> None:
    """The mean over the outputs; a token that both give no chance adds nothing."""
    (start, taught_start), (end, taught_end) = pair(3, 4), pair(3, 4)
    expected = (divergence(start, taught_start, 2.0) + divergence(end, taught_end, 2.0)).sum() / 2
    arrays = [np.pad(array, ((0, 0), (0, 2)), constant_values=-1e4) for array in (start, end, taught_start, taught_end)]
    student, teacher = (tensors(start_logits=one, end_logits=other) for one, other in (arrays[:2], arrays[2:]))
    targets = tensors(start_positions=np.zeros(3, np.int64))
    assert float(one_of_many(student, teacher, targets, 2.0)["loss"]) == pytest.approx(expected, rel=1e-5)


def test_labels_each_for_itself() -> None:
    student, teacher = pair(3, 4)
    p, q = (1 / (1 + np.exp(-logits / 2.0)) for logits in (teacher, student))
    expected = 4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    loss = each_for_itself(tensors(logits=student), tensors(logits=teacher), {}, 2.0)["loss"]
    assert float(loss) == pytest.approx(expected.sum(), rel=1e-5)
    weights = RNG.uniform(size=(3, 4))
    loss = each_for_itself(tensors(logits=student), tensors(logits=teacher), tensors(weights=weights), 2.0)["loss"]
    assert float(loss) == pytest.approx((weights * expected).sum(), rel=1e-5)


def test_numbers_are_not_softened() -> None:
    student, teacher = pair(5, 1)
    loss = same_numbers(tensors(logits=student), tensors(logits=teacher), {}, 7.0)["loss"]
    assert float(loss) == pytest.approx(((student - teacher) ** 2).sum(), rel=1e-5)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    logits = tensors(logits=pair(4, 3)[0])
    labels = tensors(labels=np.zeros(4, np.int64))
    for distill in (one_of_many, each_for_itself, same_numbers):
        assert float(distill(logits, logits, labels, 2.0)["loss"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("targets", "times"), [("grades", 1), ("text_ids", 3)])
def test_vectors_of_another_size_are_as_near_to_each_other(targets: str, times: int) -> None:
    student, teacher = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 9))
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (student, teacher)]
    expected = times * np.square(units[0] @ units[0].T - units[1] @ units[1].T).mean()
    given = tensors(**{targets: np.zeros(3, np.int64)})
    loss = get_task("embed").distill(tensors(embedding=student), tensors(embedding=teacher), given, 2.0)["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-5)
