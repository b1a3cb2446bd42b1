"""What the first tokens alone become in training is what they become beside all the others."""

from __future__ import annotations

import torch

from bertfast.config import ModelConfig
from bertfast.model.encoder import BertModel


def test_the_first_tokens_alone_give_the_gradients_of_the_whole_last_layer(tiny_config: ModelConfig) -> None:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    model = BertModel(tiny_config.model_copy(update=still)).train()
    ids = torch.randint(5, tiny_config.vocab_size, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    weight = torch.randn(3, tiny_config.hidden_size)
    found = []
    for first_only in (False, True):
        model.zero_grad()
        hidden = model(ids, mask, torch.zeros_like(ids), first_only=first_only)
        assert hidden.shape[1] == (1 if first_only else 11)
        (hidden[:, 0] * weight).sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    whole, alone = found
    assert whole.keys() == alone.keys()
    assert len(whole) > 2 * 16
    for name, gradient in whole.items():
        assert torch.allclose(alone[name], gradient, rtol=1e-4, atol=1e-5), name
