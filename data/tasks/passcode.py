"""A fact that is planted in a thought and asked for at its end: what a compressor keeps of what was generated.

The thought is given, and read as if the model had written it: the cache is compressed at the same moments. After
arXiv:2609.03430, where compressors differ most in this.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from forward_influence.data.tasks.base import Count, Item, Task, chosen_depth, require_positive
from forward_influence.data.tasks.words import numbers
from forward_influence.errors import UsageError

_CONTEXT = (
    "Here is a long chain of small sums. First choose a passcode and note it; you will be asked for it at the end."
)
_QUESTION = "Work through the sums one by one, and then give the passcode that you noted."


@dataclass(frozen=True, kw_only=True)
class Passcode(Task):
    """A passcode stated in a thought, then sums, then the question for the passcode.

    Attributes:
        thought: how long the thought is, in tokens, up to whole steps.
        digits: of the passcode.
        depth: where in the thought the passcode stands, 0 to 1.
    """

    thought: int = 600
    digits: int = 5
    depth: float = 0.0

    name: ClassVar[str] = "passcode"
    summary: ClassVar[str] = "a passcode stated early in a thought that is given, asked for at its end"
    answer_tokens: ClassVar[int] = 12
    fills: ClassVar[bool] = False
    paced: ClassVar[bool] = True

    def validate(self) -> None:
        """A thought, and a passcode."""
        require_positive(self, thought=self.thought, digits=self.digits)

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item; `length` is of the prompt, the thought comes on top."""
        if (needed := count(f"{_CONTEXT}\n\n{_QUESTION}")) > length:
            raise UsageError(f"task {self.spec}: the prompt takes {needed} tokens; give `lengths` {needed} or more")
        code = numbers(rng, 1, self.digits)[0]
        note = f"I choose the passcode {code} and note it: the passcode is {code}."
        depth = chosen_depth(self, self.depth, rng)
        steps = [_step(rng, 1)]
        room = self.thought - count(note)
        while count("\n".join([*steps, _step(random.Random(0), len(steps) + 1)])) < room:
            steps.append(_step(rng, len(steps) + 1))
        steps.insert(round(depth * len(steps)), note)
        prefix = "\n".join([*steps, "All sums are done. The passcode that I noted is"])
        return Item(self.spec, index, length, depth, _CONTEXT, _QUESTION, prefix, (code,), (note,))


def _step(rng: random.Random, number: int) -> str:
    """A small sum in words and digits."""
    a, b = rng.randrange(10, 90), rng.randrange(10, 90)
    return f"Step {number}: {a} plus {b} is {a + b}."
