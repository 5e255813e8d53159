"""How a budget is divided between layers and heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.selectors import Selector
from forward_influence.selectors.base import entry_counts
from forward_influence.selectors.budgets import adaptive_head_counts
from forward_influence.selectors.information import information_needs, layer_shares
from forward_influence.selectors.pyramidkv import Pyramid
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.signals.entropy import DEFAULT_TOP_K
from forward_influence.tracing.trace import Trace

#: (rule, trace, scores (layers, kv_heads, n), candidates per layer and head on average) -> counts that broadcast.
Divide = Callable[[Selector, Trace, Tensor, int], "int | Tensor"]


def as_the_rule_says(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """The rule's own budgets: uniform for most, by layer for `pyramid`, by head with heads=adaptive."""
    return entry_counts(rule, trace, scores, number)


def uniform(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """The same everywhere."""
    return number


def pyramid(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """Falling linearly with depth (PyramidKV, arXiv:2406.02069), never less than what is protected and one more."""
    return pyramid_of(trace.n - (trace.last - trace.first)).counts(trace, scores, number)


def pyramid_of(protected: int) -> Pyramid:
    """A pyramid whose last layer holds at least what is protected."""
    return Pyramid(window=max(1, protected))


def by_layer(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """In proportion to each layer's information, entropy times representation change (arXiv:2606.26875)."""
    shares = layer_shares(trace, number, float(getattr(rule, "tau", 1.0)), *_entropy_of(rule))
    return torch.tensor(shares, device=scores.device)[:, None]


def _entropy_of(rule: Selector) -> tuple[int, str]:
    """top_k and alignment of the entropy by which layers are divided: the rule's own, where it reads one."""
    return int(getattr(rule, "top_k", DEFAULT_TOP_K)), str(getattr(rule, "alignment", "own"))


def _no_needs(rule: Selector) -> frozenset[str]:
    return frozenset()


def by_head(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """A layer's heads compete for its entries (Ada-KV, arXiv:2407.11550)."""
    counts = torch.full(scores.shape[:2], number, device=scores.device)
    return adaptive_head_counts(scores, Candidates(trace.n, trace.first, trace.last), counts)


@dataclass(frozen=True)
class Scheme:
    """A way to divide a budget.

    Attributes:
        divide: how.
        needs: of a rule -> signals that dividing reads beside those of the rule.
    """

    divide: Divide
    needs: Callable[[Selector], frozenset[str]] = _no_needs


#: "recent" is as the rule says, with half of the budget for recent tokens.
SCHEMES = {
    "rule": Scheme(as_the_rule_says),
    "uniform": Scheme(uniform),
    "pyramid": Scheme(pyramid),
    "layers": Scheme(by_layer, lambda rule: information_needs(*_entropy_of(rule))),
    "heads": Scheme(by_head),
    "recent": Scheme(as_the_rule_says),
}


def fitted(counts: Tensor, available: Tensor) -> Tensor:
    """Counts (layers, kv_heads) that nowhere exceed what is available; what is cut goes to others, evenly."""
    fit = torch.minimum(counts, available)
    missing = int(min(counts.sum(), available.sum()) - fit.sum())
    while missing > 0:
        room = (available - fit).flatten()
        takers = room.nonzero()[:, 0]
        share, rest = divmod(missing, len(takers))
        give = torch.full_like(takers, share)
        give[:rest] += 1
        give = torch.minimum(give, room[takers])
        fit.view(-1)[takers] += give
        missing -= int(give.sum())
    return fit
