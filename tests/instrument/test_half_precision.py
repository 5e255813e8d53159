"""Models in half precision are judged by what their own attention gives, however coarse one of its kinds is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from forward_influence.errors import UsageError
from forward_influence.instrument import instrument, probes
from forward_influence.instrument.architecture import examine


def biased() -> Qwen2ForCausalLM:
    """Large key biases, such as those of Qwen2.5: the scores have few digits left for what differs between tokens."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        with torch.no_grad():
            layer.self_attn.k_proj.bias.normal_(0, 60)
            layer.self_attn.q_proj.bias.normal_(0, 3)
    return model


def test_a_model_whose_eager_attention_is_coarse_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = biased().to(torch.bfloat16)
    asked: list[bool] = []
    same = probes.same_logits
    monkeypatch.setattr(probes, "same_logits", lambda one, two: (asked.append(same(one, two)), asked[-1])[1])
    assert examine(model).layers == 4
    assert False in asked, "eager attention is not coarse here, so that nothing is shown"


def test_a_wrong_instrument_is_refused_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = biased().to(torch.bfloat16)
    right = instrument.attend

    def wrong(*arguments: Tensor, **others: object) -> Tensor:
        return right(*arguments, **others) * 0.5

    monkeypatch.setattr(instrument, "attend", wrong)
    with pytest.raises(UsageError, match="instrumented logits differ from the model's own"):
        examine(model)
