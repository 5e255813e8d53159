"""What an evaluation compares: the full cache, and compressors at budgets, each as a choice of what to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from forward_influence.compression import Compressor, Outcome, make_compressor
from forward_influence.compression.choice import Held, choose, pins
from forward_influence.errors import UsageError
from forward_influence.selectors.protection import PROTECT_FIRST, PROTECT_LAST
from forward_influence.selectors.selection import Budget
from forward_influence.storage.evaluation import FULL
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.trace import Trace

#: Chance belongs in every table; while decoding it spares the prompt (arXiv:2609.03430).
CONTROL, CONTROL_WHILE_DECODING = "random", "random-protected"


@dataclass(frozen=True)
class Contender:
    """A compressor at a budget.

    Attributes:
        name: as typed, "full" for the full cache.
        budget: "1.0" for the full cache.
        every: compress again after so many generated tokens; None: after the prefill only.
        protect_first: tokens pinned at the start.
        protect_last: tokens pinned at the end, a count or a share of what is kept; None: 64 or the rule's own window.
            Those of a window that comes on top of the budget (rpc) are that window.
        keep_prompt: keep the prompt whole; None: as the compressor has it.
    """

    name: str
    budget: str
    every: int | None = None
    protect_first: int = PROTECT_FIRST
    protect_last: int | float | None = None
    keep_prompt: bool | None = None

    @cached_property
    def compressor(self) -> Compressor:
        """What compresses."""
        made = make_compressor(
            self.name,
            self.budget,
            every=self.every,
            protect_first=self.protect_first,
            keep_prompt=None if self.name == FULL else self.keep_prompt,
        )
        if self.protect_last is None or made.window_on_top:
            return made
        return dataclasses.replace(made, protect_last=self.protect_last)

    def seeded(self, seed: int) -> Compressor:
        """The same, with the draw of a random rule."""
        return dataclasses.replace(self.compressor, rule=self.compressor.rule.at(seed))

    def keep(self, trace: Trace, seed: int = 0) -> Tensor | None:
        """What stays in the cache after the trace's context, (layers, kv_heads, tokens) bool; None for everything.

        The choice is the compressor's own (`forward_influence.compression`), made on a recorded pass that all
        contenders share.
        """
        compressor, held = self.seeded(seed), _whole(trace)
        # What rules remember depends on the candidates, and those on what is pinned: a memory for each.
        memory = trace.memo(("pinned", pins(compressor, held)[:2]), dict)
        shared = dataclasses.replace(trace, _memo=memory)
        kept = choose(compressor, held, lambda group, skip: shared, lambda positions: shared)
        return None if kept is None else torch.stack(kept)

    def outcome(self, trace: Trace, keep: Tensor | None, then: int = 0) -> Outcome:
        """What such a choice holds.

        Args:
            keep: from `keep`.
            then: how many tokens are read after the context.
        """
        return Outcome.of(keep, pins(self.compressor, _whole(trace))[:2], trace.shape, then)


def _whole(trace: Trace) -> Held:
    """All of a context, held by every layer and head."""
    layers, heads, n = trace.shape
    everything = torch.arange(n, device=trace.tokens.device).expand(heads, -1)
    return Held(positions=[everything] * layers, seen=n, prompt=n, contiguous=n, number=0)


def contenders(
    compressors: Sequence[str],
    budgets: Sequence[str],
    every: int | None = None,
    *,
    match_held: Sequence[int] = (),
    protect_first: int = PROTECT_FIRST,
    protect_last: int | float | None = None,
    keep_prompt: bool | None = None,
    window: int = 0,
) -> list[Contender]:
    """The full cache first, then every compressor at every budget; all protect the same tokens.

    Args:
        match_held: instead of budgets: entries that every compressor holds per layer and head after each compression.
        protect_first, protect_last: as of `Contender`; None: 64, or the widest window that a rule observes from.
        keep_prompt: as of `Contender`.
        window: the widest window of rules that are compared with them.

    Raises:
        UsageError: an unknown compressor, a budget of nothing, one given twice.
    """
    names = [name for name in compressors if name != FULL]
    wanted = [Budget.held(count).text for count in match_held] or list(budgets)
    for values, what in ((names, "compressor"), (wanted, "budget")):
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"{what} {value} is given twice; give it once")
    if names and not wanted:
        raise UsageError("no budget; give one with `budgets`, 0.2 say")
    if protect_last is None:
        protect_last = max([PROTECT_LAST, window, *(_window(make_compressor(name, every=every)) for name in names)])
    found = [Contender(FULL, "1.0", every, protect_first, protect_last)]
    found += [
        Contender(name, budget, every, protect_first, protect_last, keep_prompt) for name in names for budget in wanted
    ]
    for contender in found:
        _ = contender.compressor  # refused here rather than after a prefill
    return found


def _window(compressor: Compressor) -> int:
    """How many of the last tokens a compressor observes from, where it protects them as others do."""
    return 0 if compressor.window_on_top else compressor.rule.observation_window


def narrowed(found: Sequence[Contender]) -> list[str]:
    """What to say of compressors that observe from fewer tokens than they are made to, for fewer are protected."""
    short = [c for c in found if isinstance(c.protect_last, int) and c.protect_last < _window(c.compressor)]
    names = list(dict.fromkeys(c.name for c in short))
    if not names:
        return []
    widest = max(_window(c.compressor) for c in short)
    return [
        f"{', '.join(names)} observe{'s' * (len(names) == 1)} from the last {short[0].protect_last} tokens, as many as "
        f"are protected, not from {widest}"
    ]


def needs_of(found: Sequence[Contender]) -> Needs:
    """What one pass has to record for all of them."""
    compressors = [c.compressor for c in found if c.name != FULL]
    return Needs.merge(need for c in compressors for need in c.signals)
