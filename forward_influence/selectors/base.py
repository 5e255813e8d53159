"""What a rule is: a frozen dataclass whose fields are its parameters, with `scores(trace)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.budgets import adaptive_head_counts
from forward_influence.selectors.places import guarded, refusal
from forward_influence.selectors.selection import Candidates, Selection, protected_mask, top
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

GRAINS = ("entry", "layer", "token")
HEADS = ("equal", "adaptive")


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A token-importance rule. Subclasses add their parameters as fields and implement `scores`.

    Attributes:
        per: grain of the choice. "entry": every layer and head for itself; "layer": scores averaged over heads;
            "token": averaged over layers and heads too, so that one set of tokens goes from everywhere. Removing
            whole tokens is stronger than removing as many scattered entries, so compare rules of one grain.
        heads: budgets of a layer's kv heads. "equal": each selects as many; "adaptive": they compete, each sure of a
            fifth of an even share (Ada-KV, arXiv:2407.11550).

    Class attributes:
        declared: signals given to `@selector`; what `needs` is unless a class overrides it.
        positional: the field that a value without a key is for, as in mix:0.9*attention+0.1*entropy.
        example: a specification to show; for rules that cannot be made without parameters.
    """

    per: str = "entry"
    heads: str = "equal"

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stochastic: ClassVar[bool] = False
    declared: ClassVar[frozenset[str]] = frozenset()
    positional: ClassVar[str] = ""
    example: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.per not in GRAINS:
            raise UsageError(f"{self.name}: per={self.per} is unknown; per is one of {', '.join(GRAINS)}")
        if self.heads not in HEADS:
            raise UsageError(f"{self.name}: heads={self.heads} is unknown; heads is one of {', '.join(HEADS)}")
        if self.heads == "adaptive" and self.per != "entry":
            raise UsageError(f"{self.name}: with per={self.per} all heads score alike; heads=adaptive needs per=entry")
        self.validate()

    def validate(self) -> None:
        """Raise UsageError for parameters that make no sense; called once when the rule is made."""

    @property
    def needs(self) -> frozenset[str]:
        """Signals that `scores` reads, see `forward_influence.tracing.signals`."""
        return self.declared

    @property
    def observation_window(self) -> int:
        """How many of the last context tokens the rule observes from; they are protected for every rule compared."""
        return 0

    @property
    def own_budgets(self) -> bool:
        """Whether layers or heads select different numbers of tokens."""
        return self.heads != "equal"

    def scores(self, trace: Trace) -> Tensor:
        """Importance (layers, kv_heads, tokens), or anything that broadcasts to it; higher is selected first."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it scores")

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """How many candidates to select per layer and head, when `number` is meant on average.

        Args:
            scores: the final ones, (layers, kv_heads, tokens).

        Returns:
            A number, or int64 that broadcasts to (layers, kv_heads): each from 1 to the number of candidates, and
            `number` on average exactly.
        """
        return number

    def remarks(self, number: int, candidates: Candidates) -> tuple[str, ...]:
        """What a reader of results must know about this rule at this budget (a fallback that holds, say)."""
        return ()

    def notes(self, trace: Trace, number: int, mask: Tensor) -> dict[str, Any]:
        """What a row of results says about this choice beside the parameters, by name.

        Args:
            number: candidates per layer and head on average.
            mask: (layers, kv_heads, tokens) bool, what was chosen.
        """
        return {}

    @property
    def divides_by(self) -> Selector:
        """The rule by whose scores a compressor divides budgets between layers and heads, where that is another one."""
        return self

    @property
    def inner(self) -> tuple[Selector, ...]:
        """The rules that this one is made of."""
        return ()

    def at(self, seed: int) -> Selector:
        """The same rule with another seed, for rules that draw at random."""
        return dataclasses.replace(self, seed=seed) if self.stochastic else self  # type: ignore[call-arg]

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters with their values, `seed` apart (it belongs to the draw)."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seed"}

    @property
    def spec(self) -> str:
        """The rule as one would type it: its name and the parameters that differ from their defaults."""
        given = [
            str(getattr(self, f.name)) if f.name == self.positional else f"{f.name}={getattr(self, f.name)}"
            for f in sorted(dataclasses.fields(self), key=lambda f: f.name != self.positional)
            if f.name != "seed" and getattr(self, f.name) != f.default
        ]
        return self.name + (":" + ",".join(given) if given else "")


@dataclass(frozen=True, kw_only=True)
class FunctionSelector(Selector):
    """A rule made of a plain function `trace -> scores`."""

    function: ClassVar[Callable[[Trace], Tensor]]

    def scores(self, trace: Trace) -> Tensor:
        """What the function returns."""
        return type(self).function(trace)


def check_declarations(rule: Selector) -> None:
    """Refuse a rule whose needs or observation window make no sense, with its name and place, before it is used.

    Raises:
        UsageError: an unknown signal, needs that are no set, a window that is no count, or what the properties raise.
    """
    needs = guarded(rule, lambda: rule.needs)
    if isinstance(needs, str):
        raise refusal(rule, f"gives its needs as the text {needs!r}; they are a set of texts, frozenset({{{needs!r}}})")
    guarded(rule, lambda: Needs.merge(needs))
    window = guarded(rule, lambda: rule.observation_window)
    if not isinstance(window, int) or window < 0:
        raise refusal(rule, f"observes from {window!r} tokens; observation_window is a whole number from 0")


def remarks_of(rule: Selector, number: int, candidates: Candidates) -> tuple[str, ...]:
    """A rule's remarks; what they raise gets the rule's name and line."""
    found = guarded(rule, lambda: rule.remarks(number, candidates))
    return (found,) if isinstance(found, str) else tuple(found)


def final_scores(rule: Selector, trace: Trace) -> Tensor:
    """A rule's scores, checked, in float32 at least, averaged to its grain and expanded to (layers, kv_heads, tokens).

    Raises:
        UsageError: the wrong shape, NaN among the candidates, not a tensor, a trace that was changed, or what the rule
            itself raised: with the rule's name, its file and line where it is not of this package.
    """
    before = trace.versions()
    limited = trace.limited(Needs.merge(rule.needs))
    raw = guarded(rule, lambda: rule.scores(limited))
    if trace.versions() != before:
        raise refusal(rule, "changes the trace in place, which every other rule reads too; work on a copy (clone())")
    if not isinstance(raw, Tensor):
        raise refusal(rule, f"returned {type(raw).__name__}; a tensor of scores is needed")
    if raw.is_complex():
        raise refusal(rule, "returned complex scores, which have no order; return real ones")
    scores = at_least_float32(raw.detach().to(trace.tokens.device))
    layers, heads, n = trace.shape
    if scores.dim() == 2 and len(scores) > 1:
        raise refusal(
            rule,
            f"returned scores of shape {tuple(raw.shape)}: whether its rows are layers or kv heads cannot be told; "
            "return scores[:, None] for one row per layer, scores[None] for one per kv head",
        )
    try:
        scores = scores.broadcast_to(trace.shape)
    except RuntimeError:
        raise refusal(
            rule,
            f"returned scores of shape {tuple(raw.shape)}; something that broadcasts to (layers, kv_heads, tokens) = "
            f"{(layers, heads, n)} is needed",
        ) from None
    _refuse_nan(rule, scores, trace, "")
    if rule.per == "entry":
        return scores
    scores = at_grain(scores, rule.per).expand(trace.shape)
    _refuse_nan(rule, scores, trace, f" when averaged to per={rule.per} (infinities of both signs)")
    return scores


def at_grain(scores: Tensor, per: str) -> Tensor:
    """(layers, kv_heads, tokens) averaged over heads ("layer"), or layers and heads ("token"), axes kept."""
    if per == "entry":
        return scores
    return scores.mean(1, keepdim=True) if per == "layer" else scores.mean((0, 1), keepdim=True)


def _refuse_nan(rule: Selector, scores: Tensor, trace: Trace, when: str) -> None:
    wrong = torch.isnan(scores[..., trace.first : trace.last])
    if bool(wrong.any()):
        layer, head, token = (int(i) for i in wrong.nonzero()[0])
        raise refusal(
            rule,
            f"returned NaN for {int(wrong.sum())} of {wrong.numel()} candidates{when} "
            f"(first: layer {trace.layers[layer]}, kv head {head}, token {token + trace.first})",
        )


def entry_counts(rule: Selector, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
    """How many candidates a rule selects per layer and head: its own counts, checked, then its heads' competition.

    Args:
        scores: from `final_scores`.
        number: candidates per layer and head on average.

    Raises:
        UsageError: counts of another total, shape or kind, below 1 or beyond the candidates.
    """
    limited = trace.limited(Needs.merge(rule.needs))
    counts = guarded(rule, lambda: rule.counts(limited, scores, number))
    if isinstance(counts, int) and counts == number and rule.heads == "equal":
        return number
    layers, heads, _ = trace.shape
    try:
        whole = torch.as_tensor(counts, device=scores.device)
        if whole.is_floating_point() or whole.is_complex() or whole.dtype == torch.bool:
            raise TypeError(f"counts of dtype {whole.dtype}")
        whole = whole.to(torch.int64).broadcast_to(layers, heads)
    except (RuntimeError, TypeError, ValueError) as error:
        raise refusal(
            rule,
            f"gave counts that are no whole numbers that broadcast to (layers, kv_heads) = {(layers, heads)} "
            f"({str(error).splitlines()[0]})",
        ) from None
    available = trace.last - trace.first
    if int(whole.sum()) != number * layers * heads or int(whole.min()) < 1 or int(whole.max()) > available:
        raise refusal(
            rule,
            f"gave counts between {int(whole.min())} and {int(whole.max())} that sum to {int(whole.sum())}; "
            f"each must be 1 to {available} and their sum {number * layers * heads}",
        )
    if rule.heads == "adaptive":
        return adaptive_head_counts(scores, Candidates(trace.n, trace.first, trace.last), whole)
    return whole


def chosen(rule: Selector, trace: Trace, scores: Tensor, number: int, mode: str = "drop") -> Tensor:
    """The mask (layers, kv_heads, tokens) of a rule whose final scores are known; see `select`."""
    candidates = Candidates(trace.n, trace.first, trace.last)
    mask = top(scores, candidates, entry_counts(rule, trace, scores, number))
    return mask | protected_mask(candidates, mask.device) if mode == "keep" else mask


def tied_share(scores: Tensor, mask: Tensor, candidates: Candidates) -> float:
    """Share of what was chosen that scores like a candidate of its layer and head that was not: ties decided there.

    Args:
        scores, mask: (layers, kv_heads, tokens).
    """
    inside, taken = (t[..., candidates.first : candidates.last] for t in (scores, mask))
    border = inside.masked_fill(~taken, torch.inf).amin(-1, keepdim=True)
    left = inside.masked_fill(taken, -torch.inf).amax(-1, keepdim=True)
    decided = taken & (inside == border) & (border == left) & ~taken.all(-1, keepdim=True)
    return int(decided.sum()) / max(1, int(taken.sum()))


def select(rule: Selector, trace: Trace, number: int, mode: str = "drop") -> Selection:
    """Apply a rule: its `number` best candidates per layer and head; in keep mode the protected tokens come on top.

    Args:
        number: candidates per layer and head, from `Candidates.to_choose`.
    """
    return Selection(chosen(rule, trace, final_scores(rule, trace), number, mode), trace.layers)
