"""In-context recall of facts: a context made of facts about invented people, any of which may be asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forward_influence.data.tasks.base import Count, Item, Task, require_positive
from forward_influence.data.tasks.filler import spread
from forward_influence.data.tasks.words import ANIMALS, CITIES, JOBS, PEOPLE
from forward_influence.errors import UsageError

_INTRO = "The following text holds facts about people. Memorize them; you will be asked about them."
_KINDS = (
    ("{name} lives in {value}.", "In which city does {name} live?", "{name} lives in", CITIES),
    ("{name} works as a {value}.", "What does {name} work as?", "{name} works as a", JOBS),
    ("{name} has a pet {value}.", "Which pet does {name} have?", "{name} has a pet", ANIMALS),
)


@dataclass(frozen=True, kw_only=True)
class Facts(Task):
    """City, job and pet of several people, shuffled, in filler; one is asked for.

    Attributes:
        people: how many people; three facts each.
        depth: where the fact asked for stands; None draws one per item.
    """

    people: int = 3
    depth: float | None = None

    name: ClassVar[str] = "facts"
    summary: ClassVar[str] = "facts about invented people in filler, one of them asked for"
    answer_tokens: ClassVar[int] = 8

    def validate(self) -> None:
        """As many people as there are names."""
        require_positive(self, people=self.people)
        if self.people > len(PEOPLE):
            raise UsageError(f"task {self.name}: people={self.people}; there are {len(PEOPLE)} names")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise UsageError(f"task {self.name}: depth={self.depth:g} lies outside 0 to 1")

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item; values differ between people as long as there are enough."""
        names = rng.sample(PEOPLE, self.people)
        values = [_drawn(rng, kind[3], self.people) for kind in _KINDS]
        facts = [(name, kind, values[kind][i]) for i, name in enumerate(names) for kind in range(len(_KINDS))]
        rng.shuffle(facts)
        (name, kind, value), *_ = facts
        statement, ask, begin, _ = _KINDS[kind]
        pieces = [_KINDS[k][0].format(name=n, value=v) for n, k, v in facts]
        drawn = [rng.random() for _ in pieces]
        depth = drawn[0] if self.depth is None else self.depth
        question, prefix = ask.format(name=name), begin.format(name=name)
        room = length - count("\n\n" + question)
        context = spread(_INTRO, pieces, [depth, *drawn[1:]], room, rng, count)
        evidence = (statement.format(name=name, value=value),)
        return Item(self.spec, index, length, depth, context, question, prefix, (value,), evidence)


def _drawn(rng: random.Random, words: Sequence[str], number: int) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < number:
        chosen += rng.sample(words, min(len(words), number - len(chosen)))
    return chosen
