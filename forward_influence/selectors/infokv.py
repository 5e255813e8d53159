"""InfoKV: attention and information (Kai et al. 2026, arXiv:2606.26875)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.information import (
    check_entropy,
    infokv,
    information,
    information_needs,
    layer_shares,
)
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import check_window, window_attention
from forward_influence.tracing.signals.entropy import DEFAULT_TOP_K
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.tracing.trace import Trace

LAYERS = ("equal", "adaptive")


@selector("infokv", source="arXiv:2606.26875")
@dataclass(frozen=True, kw_only=True)
class InfoKV(Selector):
    """Window attention mixed with layer-wise information: entropy times representation change.

    E = (D + tau) * H, H the entropy of the token itself;  S = alpha * A + (1 - alpha) * softmax(E), both terms summing
    to 1 over the candidates.

    Attributes:
        alpha: weight of attention; 1 is attention alone.
        tau: keeps the last layer, whose representation change is 0, from scoring zero.
        top_k, alignment: of the entropy, as in `entropy`.
        window, kernel, pooling, group: of the attention term, as in `attention`.
        layers: "equal": every layer selects as many; "adaptive": in proportion to a layer's information, the sum of E
            over the candidates.
    """

    alpha: float = 0.9
    tau: float = 1.0
    top_k: int = DEFAULT_TOP_K
    alignment: str = "own"
    window: int = DEFAULT_WINDOW
    kernel: int = 5
    pooling: str = "average"
    group: str = "mean"
    layers: str = "equal"

    def validate(self) -> None:
        """0 <= alpha <= 1, nothing negative, a window that observes something."""
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"{self.name}: alpha={self.alpha} lies outside 0 to 1")
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise UsageError(f"{self.name}: tau={self.tau} is no number from 0")
        check_entropy(self, self.top_k, self.alignment)
        if self.layers not in LAYERS:
            raise UsageError(f"{self.name}: layers={self.layers} is unknown; it is one of {', '.join(LAYERS)}")
        check_window(self, self.window, self.kernel, self.pooling, self.group)

    @property
    def needs(self) -> frozenset[str]:
        """The window's queries, entropy and representation change."""
        return frozenset({f"window:{self.window}"}) | information_needs(self.top_k, self.alignment)

    @property
    def observation_window(self) -> int:
        """W."""
        return self.window

    @property
    def own_budgets(self) -> bool:
        """Where layers or heads are adaptive."""
        return self.layers != "equal" or super().own_budgets

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens), fewer where `per` averages; 0 outside the candidates.

        Attention is averaged to the grain before it is normalised, so that alpha=1 is `attention` at every grain.
        """
        attention = window_attention(trace, self.window, self.kernel, self.pooling, self.group)
        found = information(trace, self.tau, self.top_k, self.alignment)
        return infokv(attention, found, trace.candidates, self.alpha, self.per)

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """`number` everywhere, or divided between layers by their information."""
        if self.layers == "equal":
            return number
        shares = layer_shares(trace, number, self.tau, self.top_k, self.alignment)
        return torch.tensor(shares, device=scores.device)[:, None]
