"""Variable tracking: chains of assignments hidden in filler (after RULER, arXiv:2404.06654)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from forward_influence.data.tasks.base import Count, Item, Task, require_positive
from forward_influence.data.tasks.filler import spread
from forward_influence.data.tasks.words import numbers
from forward_influence.errors import UsageError

_INTRO = "Assignments to variables are hidden in the following text. Keep track of them; you will be asked about them."
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Variables(Task):
    """A variable gets a number and is handed on `hops` times; the last one's value is asked for.

    Attributes:
        hops: assignments of a variable to another; 0 asks for the variable that got the number.
        chains: chains of the same length, one of them asked for.
        digits: of the numbers.
    """

    hops: int = 1
    chains: int = 2
    digits: int = 2

    name: ClassVar[str] = "variables"
    summary: ClassVar[str] = "chains of assignments hidden in filler; the value at the end of one is asked for"
    answer_tokens: ClassVar[int] = 16

    def validate(self) -> None:
        """Enough names for all variables."""
        require_positive(self, chains=self.chains, digits=self.digits)
        if 9 * 10 ** (self.digits - 1) < 2 * self.chains:
            raise UsageError(f"task {self.name}: digits={self.digits} does not fit {self.chains} numbers")
        if self.hops < 0 or (self.hops + 1) * self.chains > len(_LETTERS) ** 2:
            raise UsageError(f"task {self.name}: hops={self.hops} must be 0 or more, and not past the variables' names")

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item; a chain's sentences stand in order, chains are mixed."""
        names = rng.sample([a + b for a in _LETTERS for b in _LETTERS], (self.hops + 1) * self.chains)
        values = numbers(rng, self.chains, self.digits)
        pieces: list[str] = []
        depths: list[float] = []
        for chain, value in enumerate(values):
            own = names[chain * (self.hops + 1) : (chain + 1) * (self.hops + 1)]
            sources = [value, *(f"VAR {name}" for name in own[:-1])]
            pieces += [f"VAR {name} = {source}." for name, source in zip(own, sources, strict=True)]
            depths += sorted(rng.random() for _ in own)
        last = names[self.hops]
        question = f"What is the number that VAR {last} holds, according to the assignments in the text?"
        prefix = f"VAR {last} holds the number"
        context = spread(_INTRO, pieces, depths, length - count("\n\n" + question), rng, count)
        evidence = tuple(pieces[: self.hops + 1])
        return Item(self.spec, index, length, depths[0], context, question, prefix, (values[0],), evidence)
