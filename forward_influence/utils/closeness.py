"""Whether two ways to the same logits agree. Some models give words that do not exist a logit of minus infinity."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_difference(one: Tensor, two: Tensor) -> float:
    """The largest |one - two|, where equal infinities are equal; NaN where either holds NaN."""
    difference = (one.double() - two.double()).abs()
    return float(difference.masked_fill(one == two, 0).max())


def close(one: Tensor, two: Tensor, tolerance: float) -> bool:
    """Whether logits agree up to `tolerance` of one plus the largest finite one."""
    finite = one[torch.isfinite(one)]
    size = float(finite.double().abs().max()) if len(finite) else 0.0
    return largest_difference(one, two) <= tolerance * (1 + size)
