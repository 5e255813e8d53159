"""What an evaluation compares: the full cache, and compressors at budgets, each as a choice of what to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from forward_influence.compression import Compressor, make_compressor
from forward_influence.compression.choice import Held, choose
from forward_influence.compression.compressor import FULL
from forward_influence.errors import UsageError
from forward_influence.signals import Needs
from forward_influence.trace import Trace

#: Chance belongs in every table; while decoding it spares the prompt (arXiv:2609.03430).
CONTROL, CONTROL_WHILE_DECODING = "random", "random-protected"


@dataclass(frozen=True)
class Contender:
    """A compressor at a budget.

    Attributes:
        name: as typed, "full" for the full cache.
        budget: "1.0" for the full cache.
        every: compress again after so many generated tokens; None: after the prefill only.
    """

    name: str
    budget: str
    every: int | None = None

    @cached_property
    def compressor(self) -> Compressor:
        """What compresses."""
        return make_compressor(self.name, self.budget, every=self.every)

    def seeded(self, seed: int) -> Compressor:
        """The same, with the draw of a random rule."""
        return dataclasses.replace(self.compressor, rule=self.compressor.rule.at(seed))

    def keep(self, trace: Trace, seed: int = 0) -> Tensor | None:
        """What stays in the cache after the trace's context, (layers, kv_heads, tokens) bool; None for everything.

        The choice is the compressor's own (`forward_influence.compression`), made on a recorded pass that all
        contenders share.
        """
        layers, heads, n = trace.shape
        compressor = self.seeded(seed)
        everything = torch.arange(n, device=trace.tokens.device).expand(heads, -1)
        held = Held(positions=[everything] * layers, seen=n, prompt=n, contiguous=n, number=0)
        # What rules remember depends on the candidates, and those on what is pinned: a memory for each.
        memory = trace.memo(("pinned", compressor.pinned(compressor.kept(n, n), n)), dict)
        shared = dataclasses.replace(trace, _memo=memory)
        kept = choose(compressor, held, lambda group, skip: shared, lambda positions: shared)
        return None if kept is None else torch.stack(kept)


def contenders(compressors: Sequence[str], budgets: Sequence[str], every: int | None = None) -> list[Contender]:
    """The full cache first, then every compressor at every budget.

    Raises:
        UsageError: an unknown compressor, a budget of nothing, one given twice.
    """
    names = [name for name in compressors if name != FULL]
    for values, what in ((names, "compressor"), (list(budgets), "budget")):
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"{what} {value} is given twice; give it once")
    if names and not budgets:
        raise UsageError("no budget; give one with --budget, 0.2 say")
    found = [Contender(FULL, "1.0", every)]
    found += [Contender(name, budget, every) for name in names for budget in budgets]
    for contender in found:
        _ = contender.compressor  # refused here rather than after a prefill
    return found


def needs_of(found: Sequence[Contender]) -> Needs:
    """What one pass has to record for all of them."""
    compressors = [c.compressor for c in found if c.name != FULL]
    return Needs.merge(need for c in compressors for need in c.signals)
