"""Which token makes a model's states NaN or infinite: looked for where something did, by halving.

Attention multiplies a token's value by a weight of 0 where it is masked, and 0 times NaN is NaN: within a chunk the
tokens before the bad one are spoilt too, so that the chunk's own states do not tell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.models.loading import Model
from forward_influence.utils.defaults import CHUNK


def first_bad_length(most: int, is_finite: Callable[[int], bool]) -> int:
    """The shortest length in 1..`most` that is not finite, given that `most` is not; one pass per halving."""
    low, high = 0, most  # low is finite, high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_finite(middle) else (low, middle)
    return high


def first_not_finite(model: Model, tokens: Tensor, chunk: int = CHUNK, span: int | None = None) -> int:
    """Index of the first of tokens (n,) after which the model's last hidden states are not finite, full cache."""
    tokens = tokens.to(model.device)

    def is_finite(length: int) -> bool:
        cache = SelectiveCache(model.model.config, span=span or len(tokens), room=length)
        with torch.no_grad(), Instrument(model.model, cache=cache, span=span or len(tokens)) as instrument:
            return bool(torch.isfinite(continuation_hidden(model.model, tokens[:length], instrument, chunk)).all())

    return first_bad_length(len(tokens), is_finite) - 1
