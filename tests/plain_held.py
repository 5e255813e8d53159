"""What compressors hold, pin and choose, by plain arithmetic on their definitions: nothing of the package is used.

Definitions (of the papers, as docs/compression.md gives them), per layer and head:

    most compressors    floor(b s) of the s tokens seen, at least 1; the first 4 pinned and the last 64, or a share of
                        what is kept, at most half of it
    h2o                 the same, half of it pinned at the end
    random-protected, prompt-recent
                        the prompt, and floor(b (s - prompt)) of what follows, of which at most half is pinned
    rpc                 the prompt, floor(b (s - prompt)) of what follows, and its window of 32 on top
    held=N              N of everything
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Compressors that are not like most; each rule's window beside.
WHOLE_PROMPT = ("rpc", "random-protected", "prompt-recent")
RPC_WINDOW = 32


@dataclass(frozen=True)
class Held:
    """Entries per layer and head after one compression: pinned at the start, chosen, pinned at the end."""

    seen: int
    first: int
    chosen: int
    last: int
    everything: bool = False

    @property
    def held(self) -> int:
        return self.first + self.chosen + self.last


def share(budget: str, tokens: int) -> int:
    """floor(b n), at least 1; or a count."""
    return max(1, math.floor(float(budget) * tokens + 1e-9)) if "." in budget else int(budget)


def at_end(asked: float, kept: int) -> int:
    """How many of the last tokens are pinned: a count or a share of what is kept, at most half of it."""
    wanted = max(1, math.floor(asked * kept + 1e-9)) if isinstance(asked, float) else asked
    return min(wanted, max(1, kept // 2))


def after(name: str, budget: str, prompt: int, seen: int, protect_last: float) -> Held:
    """What one compression leaves."""
    whole = Held(seen, seen, 0, 0, everything=True)
    if name == "full":
        return whole
    if name in WHOLE_PROMPT:
        if seen == prompt:
            return whole
        window = RPC_WINDOW if name == "rpc" else 0
        if budget.startswith("held="):
            rest = int(budget[5:]) - prompt
        else:
            rest = share(budget, seen - prompt) + window
        if rest >= seen - prompt:
            return whole
        last = min(window, rest) if name == "rpc" else at_end(protect_last, rest)
        return Held(seen, prompt, rest - last, last)
    kept = int(budget[5:]) if budget.startswith("held=") else share(budget, seen)
    if kept >= seen:
        return whole
    last = max(1, kept // 2) if name == "h2o" else at_end(protect_last, kept)
    first = min(4, kept - last)
    return Held(seen, first, kept - first - last, last)


def moments(prompt: int, total: int, prefill: bool, every: int | None) -> list[int]:
    """At how many tokens seen a cache is compressed, decoding token by token."""
    found, last = ([prompt], prompt) if prefill else ([], prompt)
    for seen in range(prompt + 1, total + 1):
        if every is not None and seen - last >= every:
            found.append(seen)
            last = seen
    return found


def most(held: list[Held], prompt: int, total: int) -> int:
    """The most that was held at any moment after the prompt: step by step."""
    by_moment = {one.seen: one.held for one in held}
    count = by_moment.get(prompt, prompt)
    largest = count
    for seen in range(prompt + 1, total + 1):
        count += 1
        largest = max(largest, count)
        count = by_moment.get(seen, count)
    return largest
