from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special

from bertfast.tasks.probabilities import sigmoid, softmax

LOGITS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32))


@given(logits=LOGITS)
def test_they_are_scipy_s_and_never_overflow(logits: npt.NDArray[np.float32]) -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = softmax(logits), sigmoid(logits)
    wide = logits.astype(np.float64)
    assert found[0] == pytest.approx(special.softmax(wide, axis=-1), abs=1e-12)
    assert found[1] == pytest.approx(special.expit(wide), abs=1e-12)
    assert found[0].dtype == found[1].dtype == np.float64


def test_nothing_has_no_probability() -> None:
    assert softmax(np.array([])).tolist() == []
