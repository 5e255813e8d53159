"""What is computed of tensors in several places: precision, blocks that fit a cache, entropy, bytes to hash."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of one of the few blocks of rows that a comparison works on at a time; together they fit a third-level cache.
_CACHE_BYTES = 1 << 21


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64 already."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's numbers in row order, wherever it lies; for a digest."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def rows_in_cache(logits: Tensor) -> int:
    """How many rows to work on at a time: a few megabytes on a processor; all of them on an accelerator."""
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return max(1, _CACHE_BYTES // (logits.shape[-1] * logits.element_size()))


def slices(length: int, step: int) -> list[slice]:
    """`length` rows, `step` at a time."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def entropy(logits: Tensor, top_k: int = 0) -> Tensor:
    """Entropy in nats of the softmax over the `top_k` largest logits of each row, over all of them for 0.

    Args:
        logits: (rows, vocabulary).
        top_k: how many of the largest logits take part (arXiv:2606.26875 uses 256); a number at or above the
            vocabulary means all.

    Returns:
        (rows,), at least float32.
    """
    logits = at_least_float32(logits)
    if 0 < top_k < logits.shape[-1]:
        logits = logits.topk(top_k, dim=-1, sorted=False).values
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    p = log_p.exp()
    return -(p.mul_(log_p.clamp_min_(torch.finfo(log_p.dtype).min))).sum(-1)  # a word that does not exist adds 0
