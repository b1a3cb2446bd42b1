from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast.config import ModelConfig
from bertfast.model.heads import SentenceEncoder, mean_of_tokens
from bertfast.text.batch import pad
from bertfast.text.tokenizer import Encoded

Pooling = Literal["mean", "cls"]
SEQUENCES = st.lists(st.lists(st.integers(5, 60), min_size=1, max_size=9), min_size=1, max_size=5)


def encoder(config: ModelConfig, pooling: Pooling, normalize: bool = True) -> SentenceEncoder:
    torch.manual_seed(3)
    model = SentenceEncoder(config, pooling, normalize)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def embed(model: SentenceEncoder, rows: list[list[int]], length: int | None = None) -> np.ndarray:
    batch = pad([Encoded(row, [0] * len(row)) for row in rows], 0, length)
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in batch.arrays.items()})["embedding"].numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=SEQUENCES, more=st.integers(0, 12), random=st.randoms(use_true_random=False))
def test_padding_and_batch_order_change_no_embedding(
    tiny_config: ModelConfig, pooling: Pooling, rows: list[list[int]], more: int, random: np.random.Generator
) -> None:
    model = encoder(tiny_config, pooling)
    plain = embed(model, rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    turned = embed(model, [rows[n] for n in order], max(map(len, rows)) + more)
    assert np.allclose(turned, plain[order], atol=2e-6)
    assert np.allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)


def test_what_is_not_normalised_is_the_mean_itself(tiny_config: ModelConfig) -> None:
    raw, unit = (embed(encoder(tiny_config, "mean", normalize), [[7, 8, 9]]) for normalize in (False, True))
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    assert np.allclose(raw / np.linalg.norm(raw), unit, atol=1e-6)


def test_the_mean_is_over_real_tokens() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [90.0, 90.0]], [[5.0, 5.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_of_tokens(hidden, mask).tolist() == [[2.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_row_of_nothing_but_padding_is_finite(tiny_config: ModelConfig, pooling: Pooling) -> None:
    assert np.isfinite(embed(encoder(tiny_config, pooling), [[7, 8], []])).all()
