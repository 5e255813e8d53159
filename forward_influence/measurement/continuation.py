"""Continuations that the model itself writes."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError
from forward_influence.models.generation_settings import drawn, neutral, run_generate
from forward_influence.models.loading import Model


def generate_continuation(model: Model, context: Tensor, m: int, temperature: float, seed: int) -> Tensor:
    """What the model itself writes after a context: (m,) token ids, exactly m (it may not stop early).

    Sampled from the whole distribution at `temperature`; greedy for 0. Of the checkpoint's generation settings only the
    end tokens hold, see `forward_influence.models.generation_settings`.

    Raises:
        ForwardInfluenceError: the model's logits become NaN or infinite.
    """
    settings = neutral(model.model, m, min_new_tokens=m, **drawn(temperature))
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = run_generate(model.model, context.to(model.device), settings)
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ForwardInfluenceError(
            "while it writes its continuation the model's logits become NaN or infinite; try `dtype` float32, another "
            "`temperature`, or leave this document out"
        ) from error
    return output[len(context) :]
