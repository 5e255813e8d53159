"""Rules that rank tokens by information: how uncertain or surprised the model was there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, at_grain
from forward_influence.selectors.budgets import apportion
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import check_window, window_attention
from forward_influence.tracing.signals.entropy import ALIGNMENTS, DEFAULT_TOP_K, entropy_need
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.tracing.trace import Trace

LAYERS = ("equal", "adaptive")


@selector("entropy", source="arXiv:2606.26875")
@dataclass(frozen=True, kw_only=True)
class Entropy(Selector):
    """Predictive entropy: how uncertain the model was about a token before it came.

    Attributes:
        top_k: softmax over the k largest logits only; 0 for the whole vocabulary.
        alignment: "own": of the distribution that the token was drawn from; "next": of the one that the model gives at
            the token, which says how uncertain it is about what comes after.
    """

    top_k: int = DEFAULT_TOP_K
    alignment: str = "own"

    def validate(self) -> None:
        """Nothing negative, a known alignment."""
        check_entropy(self, self.top_k, self.alignment)

    @property
    def needs(self) -> frozenset[str]:
        """Entropy with this top_k and alignment."""
        return frozenset({entropy_need(self.top_k, self.alignment)})

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return trace.entropy_of(self.top_k, self.alignment)


def check_entropy(rule: Selector, top_k: int, alignment: str) -> None:
    """Refuse parameters of an entropy that make no sense."""
    if top_k < 0:
        raise UsageError(f"{rule.name}: top_k={top_k} is negative; give 0 (the whole vocabulary) or more")
    if alignment not in ALIGNMENTS:
        raise UsageError(f"{rule.name}: alignment={alignment} is unknown; it is {' or '.join(ALIGNMENTS)}")


@selector("low-entropy", source="control for entropy")
@dataclass(frozen=True, kw_only=True)
class LowEntropy(Entropy):
    """The tokens that the model was surest of: entropy upside down, with its parameters."""

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return -super().scores(trace)


@selector("surprisal", source="-log p of the token itself")
@dataclass(frozen=True, kw_only=True)
class Surprisal(Selector):
    """How unexpected a token was: -log p given what came before it."""

    @property
    def needs(self) -> frozenset[str]:
        """Surprisal."""
        return frozenset({"surprisal"})

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return trace.surprisal


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


def infokv(attention: Tensor, found: Tensor, candidates: Tensor, alpha: float, per: str = "entry") -> Tensor:
    """S = alpha * A + (1 - alpha) * softmax(E), both terms summing to 1 over the candidates: the rule and the press.

    Args:
        attention: (..., kv_heads, tokens), not negative.
        found: information E, broadcastable to that.
        candidates: (tokens,) bool.
        per: the grain that both terms are averaged to, attention before it is normalised.
    """
    share = found.masked_fill(~candidates, float("-inf")).softmax(-1)
    return alpha * normalised(at_grain(attention, per), candidates) + (1 - alpha) * at_grain(share, per)


def normalised(scores: Tensor, candidates: Tensor) -> Tensor:
    """Scores that are not negative, divided so that they sum to 1 over the candidates; 0 elsewhere.

    In float64, where scores that differ in float32 still differ after the division.
    """
    inside = scores.double() * candidates
    return inside / inside.sum(-1, keepdim=True).clamp_min(torch.finfo(inside.dtype).tiny)


def information_needs(top_k: int, alignment: str) -> frozenset[str]:
    """What `information` reads."""
    return frozenset({entropy_need(top_k, alignment), "representation_change"})


def information(trace: Trace, tau: float, top_k: int, alignment: str = "own") -> Tensor:
    """E = (D + tau) * H, (layers, 1, tokens), or (layers, kv_heads, tokens) where heads hold different tokens."""
    change = trace.representation_change
    return information_of(change if change.dim() == 3 else change[:, None], trace.entropy_of(top_k, alignment), tau)


def information_of(change: Tensor, entropies: Tensor, tau: float) -> Tensor:
    """E = (D + tau) * H of representation changes D and entropies H."""
    return (change + tau) * entropies


def layer_shares(trace: Trace, number: int, tau: float, top_k: int, alignment: str = "own") -> list[int]:
    """`number` candidates per layer on average, divided in proportion to each layer's information; at least 1 each."""
    mass = (information(trace, tau, top_k, alignment) * trace.candidates).sum(-1).mean(-1).tolist()
    return apportion(mass, number * len(mass), 1, trace.last - trace.first)
