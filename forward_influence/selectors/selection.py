"""From scores to sets: candidates, budgets, and the selection that every other part exchanges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.utils.display import Displayed
from forward_influence.utils.ranges import ranges

#: In keep mode, fewer than this many freely chosen tokens make no choice worth comparing.
FEWEST_TO_CHOOSE = 32
MODES = ("drop", "keep")
#: How a budget is written that is a number of entries held, of whatever compressor.
_HELD = "held="


@dataclass(frozen=True)
class Budget:
    """How much to select: a fraction of the context (0 < b < 1), or a count of tokens.

    Attributes:
        text: as it was written; what tables show.
        value: the number.
        is_fraction: whether it is a fraction.
        of_all: a compressor's, a count of all that it holds: of a prompt that it keeps whole and of a window that comes
            on top, too.
    """

    text: str
    value: float
    is_fraction: bool
    of_all: bool = False

    @staticmethod
    def parse(text: str | float | int, *, whole: bool = False) -> Budget:
        """Read a budget: with a point it is a fraction, without one a count from 1.

        Args:
            whole: also take what a compressor does: 1.0, everything, and "held=200".

        Raises:
            UsageError: not a number, nothing, negative, or a fraction of one or more.
        """
        written = str(text).strip()
        if written.startswith(_HELD) and whole:
            count = written.removeprefix(_HELD)
            if not count.isdigit():
                raise UsageError(f"budget {written} is no number of entries to hold; give {_HELD}200, say")
            return Budget.held(int(count))
        try:
            value = float(written)
        except ValueError:
            value = math.nan
        is_fraction = not written.lstrip("+").isdigit()
        if not math.isfinite(value):
            raise UsageError(f"budget {written!r} is not a number; give a fraction like 0.2 or a count like 200")
        if value <= 0:
            raise UsageError(f"budget {written} selects nothing; give a fraction like 0.2 or a count like 200")
        if is_fraction and not (value < 1 or (whole and value == 1)):
            raise UsageError(f"budget {written} is not below 1; a fraction lies in (0, 1), a count has no point")
        return Budget(written, value, is_fraction)

    @staticmethod
    def held(count: int) -> Budget:
        """A compressor's budget that comes to so many entries held per layer and head, whatever kind of compressor.

        Raises:
            UsageError: none, or not a whole number.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"`match_held` {count} is no number of entries to hold; give a whole number like 200")
        return Budget(f"{_HELD}{count}", count, False, of_all=True)

    def count(self, tokens: int) -> int:
        """The number of tokens meant, out of `tokens`: at least 1."""
        return max(1, math.floor(self.value * tokens + 1e-9)) if self.is_fraction else int(self.value)


@dataclass(frozen=True)
class Candidates:
    """The tokens that rules choose among: first <= i < last of n. The others are protected.

    Attributes:
        of_spans: whether they are a part of the context that was asked for: budgets are of them then, not of all n.
    """

    n: int
    first: int
    last: int
    of_spans: bool = False

    @staticmethod
    def of(n: int, protect_first: int, protect_last: int) -> Candidates:
        """Everything but the first and the last tokens.

        Raises:
            UsageError: none is left.
        """
        if protect_first < 0 or protect_last < 0:
            raise UsageError("a negative number of tokens cannot be protected; give 0 or more")
        if protect_first + protect_last >= n:
            raise UsageError(
                f"{protect_first} + {protect_last} protected tokens leave none of {n} to choose from; "
                "use a longer `context` or protect fewer"
            )
        return Candidates(n, protect_first, n - protect_last)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.last - self.first

    @property
    def protected(self) -> int:
        """How many are not."""
        return self.n - self.count

    def to_choose(self, budget: Budget, mode: str) -> int:
        """How many candidates a budget selects per layer and head.

        In drop mode that many are removed. In keep mode that many tokens stay, protected ones included; of candidates
        of spans that many stay, and all else.

        Raises:
            UsageError: more than there are, or (keep) so few that nothing is left to choose.
        """
        wanted = budget.count(self.count if self.of_spans else self.n)
        if self.of_spans:
            if wanted > self.count or (mode == "keep" and wanted == self.count):
                most = self.count if mode == "drop" else self.count - 1
                raise UsageError(
                    f"budget {budget.text} asks for {wanted} of {self.count} candidates; give {most} at most"
                )
            return wanted
        if mode == "drop":
            if wanted > self.count:
                raise UsageError(
                    f"budget {budget.text} asks for {wanted} of {self.count} candidates "
                    f"({self.n} context tokens, {self.protected} protected); lower it or protect fewer"
                )
            return wanted
        free = wanted - self.protected
        if free < FEWEST_TO_CHOOSE:
            raise UsageError(
                f"budget {budget.text} keeps {wanted} of {self.n} tokens, {self.protected} protected: fewer than "
                f"{FEWEST_TO_CHOOSE} are left to choose; raise it, protect fewer, or use a longer `context`"
            )
        if free > self.count:
            raise UsageError(f"budget {budget.text} keeps {wanted} tokens of {self.n}; give fewer than all")
        return free


@dataclass(frozen=True)
class Selection(Displayed):
    """A set of (layer, kv head, token) entries of a context's cache.

    Attributes:
        mask: (layers, kv_heads, tokens) bool, True where selected; layers are the full-attention ones.
        layers: their indices in the model.
    """

    mask: Tensor
    layers: tuple[int, ...]

    def __repr__(self) -> str:
        layers, heads, tokens = self.mask.shape
        return f"Selection({int(self.mask.sum()):,} entries of {layers} layers x {heads} kv heads x {tokens} tokens)"

    @property
    def counts(self) -> Tensor:
        """Entries selected per layer and head, (layers, kv_heads) int64."""
        return self.mask.sum(-1)

    @property
    def grain(self) -> str:
        """At which grain the choice was made, by its outcome: "token" where all layers and heads select the same
        tokens, "layer" where all heads of each layer do, else "entry". Layers and heads that select nothing are left
        out. A rule may be coherent whatever its parameter `per` says: predictive entropy is one number per token.
        """
        by_layer = [layer[layer.any(-1)] for layer in self.mask if layer.any()]
        if not all(bool((heads == heads[0]).all()) for heads in by_layer):
            return "entry"
        return "token" if all(torch.equal(heads[0], by_layer[0][0]) for heads in by_layer) else "layer"

    def kept(self, mode: str) -> Tensor:
        """What stays in the cache: the others in drop mode, these in keep mode."""
        return ~self.mask if mode == "drop" else self.mask

    def restricted(self, layers: set[int] | None, heads: set[int] | None) -> Selection:
        """The same entries, of the given model layers and kv heads only.

        Raises:
            UsageError: a layer that is not a full-attention one, or a head that does not exist.
        """
        mask = self.mask.clone()
        if layers is not None:
            if strange := sorted(layers - set(self.layers)):
                raise UsageError(
                    f"layers {ranges(strange)} cannot be ablated; the full-attention layers are {ranges(self.layers)}"
                )
            mask[[i for i, layer in enumerate(self.layers) if layer not in layers]] = False
        if heads is not None:
            if strange := sorted(heads - set(range(mask.shape[1]))):
                raise UsageError(f"kv heads {ranges(strange)} do not exist; the model has {mask.shape[1]}")
            mask[:, [h for h in range(mask.shape[1]) if h not in heads]] = False
        return Selection(mask, self.layers)


def top(scores: Tensor, candidates: Candidates, counts: int | Tensor) -> Tensor:
    """Mark the highest-scoring candidates; of equals, the earlier token.

    Args:
        scores: (layers, kv_heads, n), anything sortable.
        counts: how many per layer and head, one number or (layers, kv_heads).

    Returns:
        (layers, kv_heads, n) bool.
    """
    order = scores[..., candidates.first : candidates.last].sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.empty_like(order)
    places = torch.arange(candidates.count, device=order.device).expand_as(order)
    ranks.scatter_(-1, order, places)
    limit = counts[..., None] if isinstance(counts, Tensor) else counts
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[..., candidates.first : candidates.last] = ranks < limit
    return mask


def protected_mask(candidates: Candidates, device: torch.device) -> Tensor:
    """(n,) bool: the protected tokens."""
    mask = torch.ones(candidates.n, dtype=torch.bool, device=device)
    mask[candidates.first : candidates.last] = False
    return mask
