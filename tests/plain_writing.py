"""The plainest way to write: the most likely token after a whole pass, again and again."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def by_full_passes(model: PreTrainedModel, tokens: Tensor, new: int, never: tuple[int, ...] = ()) -> list[int]:
    """`new` greedy token ids after tokens (n,), without a cache and without `generate`; none of `never`."""
    written: list[int] = []
    with torch.no_grad():
        for _ in range(new):
            whole = torch.cat([tokens, torch.tensor(written, dtype=torch.int64)])
            logits = model(whole[None], use_cache=False).logits[0, -1].clone()
            logits[list(never)] = float("-inf")
            written.append(int(logits.argmax()))
    return written
