"""What rules that observe from a window of the last tokens share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import attention_logits
from forward_influence.selectors.base import Selector
from forward_influence.tracing.trace import Trace

POOLINGS = ("average", "max", "none")
REDUCTIONS = ("mean", "max", "sum")


def pooled(scores: Tensor, kernel: int, pooling: str) -> Tensor:
    """Pool over the last axis of (heads, group, tokens), stride 1, zero padding counted in averages."""
    if pooling == "none" or kernel == 1:
        return scores
    if pooling == "average":
        return F.avg_pool1d(scores, kernel, stride=1, padding=kernel // 2)
    return F.max_pool1d(scores, kernel, stride=1, padding=kernel // 2)


def reduced(scores: Tensor, how: str) -> Tensor:
    """(heads, group, tokens) -> (heads, tokens)."""
    if how == "mean":
        return scores.mean(1)
    return scores.amax(1) if how == "max" else scores.sum(1)


def window_attention(trace: Trace, window: int, kernel: int, pooling: str, group: str) -> Tensor:
    """SnapKV's score (L, H, n) for the tokens before the window; 0 inside it, where it is not defined."""

    observed = trace.observed(window)

    def compute() -> Tensor:
        result = torch.zeros(trace.shape, dtype=torch.float32, device=trace.tokens.device)
        for layer in range(len(trace.layers)):
            seen = trace.attention(layer, observed)[..., : trace.n - observed].mean(2)
            result = result.to(seen.dtype)
            if seen.shape[-1]:
                result[layer, :, : trace.n - observed] = reduced(pooled(seen, kernel, pooling), group)
        return result

    return trace.memo(("window_attention", observed, kernel, pooling, group), compute)


def check_window(rule: Selector, window: int, kernel: int, pooling: str, group: str) -> None:
    """Refuse window parameters that make no sense."""
    if window < 1:
        raise UsageError(f"{rule.name}: window={window} observes nothing; give at least 1")
    if kernel < 1 or kernel % 2 == 0:
        raise UsageError(f"{rule.name}: kernel={kernel} must be an odd number from 1")
    if pooling not in POOLINGS:
        raise UsageError(f"{rule.name}: pooling={pooling} is unknown; it is one of {', '.join(POOLINGS)}")
    if group not in REDUCTIONS:
        raise UsageError(f"{rule.name}: group={group} is unknown; it is one of {', '.join(REDUCTIONS)}")


def logits_before_window(trace: Trace, layer: int, window: int) -> Tensor:
    """Logits of the last `window` queries to the tokens before them, (kv_heads, group, window, n - window)."""
    keys = trace.attended(layer)[0][:, : -window or None]
    return trace.by_entry(attention_logits(trace.queries(layer, window), keys, trace.geometry[layer]))


def padded(scores: list[Tensor], n: int) -> Tensor:
    """Layers' scores of the tokens before the window, stacked; 0 inside it, where they are not defined."""
    stacked = torch.stack(scores)
    return F.pad(stacked, (0, n - stacked.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class Windowed(Selector):
    """A rule with an observation window and a pooling kernel.

    Attributes:
        window: queries of the observation window.
        kernel: width of the pooling, odd.
    """

    window: int = 32
    kernel: int = 7

    def validate(self) -> None:
        """A window that observes something, an odd kernel."""
        if self.window < 1:
            raise UsageError(f"{self.name}: window={self.window} observes nothing; give at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"{self.name}: kernel={self.kernel} must be an odd number from 1")

    @property
    def needs(self) -> frozenset[str]:
        """The window's queries."""
        return frozenset({f"window:{self.window}"})

    @property
    def observation_window(self) -> int:
        """The window, which is always kept."""
        return self.window
