"""Continuations that the model itself writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from forward_influence.errors import ForwardInfluenceError
from forward_influence.models import Model


def generate_continuation(model: Model, context: Tensor, m: int, temperature: float, seed: int) -> Tensor:
    """What the model itself writes after a context: (m,) token ids, exactly m (it may not stop early).

    Sampled from the whole distribution at `temperature`; greedy for 0.

    Raises:
        ForwardInfluenceError: the model's logits become NaN or infinite.
    """
    ids = context[None].to(model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    own = model.model.generation_config
    # in place of the model's own, from which `generate` would fill in penalties, beams and whatever bends distributions
    model.model.generation_config = GenerationConfig(
        eos_token_id=getattr(own, "eos_token_id", None),
        pad_token_id=getattr(own, "pad_token_id", None) or 0,
        max_new_tokens=m,
        min_new_tokens=m,
        **sampling,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            output = model.model.generate(ids, attention_mask=torch.ones_like(ids))  # type: ignore[operator]
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ForwardInfluenceError(
            "while it writes its continuation the model's logits become NaN or infinite; try --dtype float32, another "
            "--temperature, or leave this document out"
        ) from error
    finally:
        model.model.generation_config = own
    return output[0, len(context) :]
