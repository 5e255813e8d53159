"""Needle retrieval: numbers or words hidden in filler, to be found by their key (after RULER, arXiv:2404.06654)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from forward_influence.data.tasks.base import Count, Item, Task, chosen_depth, require_positive
from forward_influence.data.tasks.filler import spread
from forward_influence.data.tasks.words import FOODS, key_names, numbers
from forward_influence.errors import UsageError

_INTRO = "Some special magic {}s are hidden in the following text. Memorize them; you will be asked about them."
_KINDS = ("word", "number")


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """Keys with values in filler; one key is asked for, and all of its values count.

    Attributes:
        keys: how many keys there are.
        values: how many values the asked key has.
        kind: of the values: word (a food, most often a single token), or number, which is harder to bring out whole.
        digits: of each number.
        depth: where the (first) value asked for stands; None draws one per item.
    """

    keys: int = 1
    values: int = 1
    kind: str = "word"
    digits: int = 5
    depth: float | None = None

    name: ClassVar[str] = "needle"
    summary: ClassVar[str] = "one word (or number) hidden in filler, found by its key"
    answer_tokens: ClassVar[int] = 16

    def validate(self) -> None:
        """Counts from 1, few enough digits to write."""
        require_positive(self, keys=self.keys, values=self.values, digits=self.digits)
        if self.kind not in _KINDS:
            raise UsageError(f"task {self.name}: kind={self.kind} is unknown; it is one of {', '.join(_KINDS)}")
        if self.kind == "word" and self.keys + self.values > len(FOODS):
            raise UsageError(f"task {self.name}: {self.keys + self.values} values; there are {len(FOODS)} words")
        if self.kind == "number" and 9 * 10 ** (self.digits - 1) < 2 * (self.keys + self.values):
            raise UsageError(f"task {self.name}: digits={self.digits} does not fit {self.keys + self.values} numbers")

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item; keys and values do not depend on the length."""
        keys = key_names(rng, self.keys)
        wanted = self.keys - 1 + self.values
        drawn = numbers(rng, wanted, self.digits) if self.kind == "number" else rng.sample(FOODS, wanted)
        depth = chosen_depth(self, self.depth, rng)
        asked, answers = keys[0], tuple(drawn[: self.values])
        pairs = [(asked, value) for value in answers] + list(zip(keys[1:], drawn[self.values :], strict=True))
        pieces = [f"One of the special magic {self.kind}s for {key} is: {value}." for key, value in pairs]
        depths = [depth, *(rng.random() for _ in pieces[1:])]
        several = self.values > 1
        noun = f"special magic {self.kind}{'s' if several else ''} for {asked} mentioned in the text"
        question = f"What {'are all' if several else 'is'} the {noun}?"
        prefix = f"The {noun} {'are:' if several else 'is'}"
        room = length - count("\n\n" + question)
        context = spread(_INTRO.format(self.kind), pieces, depths, room, rng, count)
        evidence = tuple(pieces[: self.values])
        return Item(self.spec, index, length, depth, context, question, prefix, answers, evidence)


@dataclass(frozen=True, kw_only=True)
class NeedleMultikey(Needle):
    """Several keys, one asked for."""

    keys: int = 4

    name: ClassVar[str] = "needle-multikey"
    summary: ClassVar[str] = "several keys with a word each hidden in filler, one asked for"


@dataclass(frozen=True, kw_only=True)
class NeedleMultivalue(Needle):
    """One key with several values, all asked for; the score is the share found."""

    values: int = 3

    name: ClassVar[str] = "needle-multivalue"
    summary: ClassVar[str] = "one key with several words hidden in filler; the score is the share found"
    answer_tokens: ClassVar[int] = 48
    until: ClassVar[tuple[str, ...]] = ("\n\n",)
