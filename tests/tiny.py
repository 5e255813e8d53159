"""Tiny random models of several architectures, in float64 unless asked otherwise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gpt_neox": {"num_key_value_heads": None},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
}

#: Those that the first release promises; the others exercise soft-capping and attention sinks.
PROMISED = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text", "gpt_neox")


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model with weights large enough that attention is far from uniform."""
    return _cached(family, dtype, seed, tuple(sorted(changes.items())))


@lru_cache(maxsize=32)
def _cached(family: str, dtype: torch.dtype, seed: int, changes: tuple[tuple[str, Any], ...]) -> PreTrainedModel:
    settings = {**COMMON, **FAMILIES[family], **dict(changes)}
    config = AutoConfig.for_model(family, **{k: v for k, v in settings.items() if v is not None})
    if family == "mistral":
        config.sliding_window = settings["sliding_window"]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"  # the grouped kernel has no float64
    return model.to(dtype).eval().requires_grad_(False)
