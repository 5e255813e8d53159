"""What an evaluation task is: a frozen dataclass that makes items, each with a context, a question and its answers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from forward_influence.errors import UsageError

Count = Callable[[str], int]

#: What a task leaves for the question and the words around the filler, at least, in tokens.
SHORTEST_LENGTH = 128


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        task: the task's specification.
        index: its number; task, seed, length and index make the item.
        length: tokens that context and question may have together.
        depth: where in the context the (first) sentence that matters stands, 0 to 1; None where all of it matters.
        context: what can be compressed before the question is known.
        question: what is asked; it follows the context, and nothing of it can be read off the context.
        answer_prefix: the words that the answer is made to begin with; may be empty.
        answers: each has to be found in the response; the score is the share that is.
        evidence: sentences of the context that hold the answer.
    """

    task: str
    index: int
    length: int
    depth: float | None
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON and data sets."""
        return {**dataclasses.asdict(self), "answers": list(self.answers), "evidence": list(self.evidence)}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A family of problems. Subclasses add parameters as fields and implement `make`.

    Attributes:
        name: what users type.
        summary: one sentence about it.
        reasons: whether the answer comes after a chain of thought.
        answer_tokens: the longest answer in tokens.
        until: a response ends where one of these begins.
        fills: whether items are as long as they may be; otherwise `length` is a limit that they stay below.
        paced: the answer's first words, `Item.answer_prefix`, are a thought: where the cache is compressed while the
            answer grows, they are read as if they were generated.
        family: tasks of one family share their seeds: the same problem with and without a chain of thought has the
            same number; tables set the two side by side. Empty: the task's own name.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    reasons: ClassVar[bool] = False
    answer_tokens: ClassVar[int] = 16
    until: ClassVar[tuple[str, ...]] = ("\n",)
    fills: ClassVar[bool] = True
    paced: ClassVar[bool] = False
    family: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise UsageError for parameters that make no sense."""

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item from a seeded generator."""
        raise NotImplementedError

    def score(self, item: Item, response: str) -> float:
        """Between 0 and 1."""
        from forward_influence.data.tasks.scoring import share_found

        return share_found(response, item.answers)

    @property
    def spec(self) -> str:
        """The task as one would type it: its name and the parameters that differ from their defaults."""
        given = [
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default and getattr(self, f.name) is not None
        ]
        return self.name + (":" + ",".join(given) if given else "")

    def item(self, index: int, length: int, count: Count, seed: int = 0) -> Item:
        """The item of that number: the same for the same task, length, seed and tokenizer.

        Args:
            length: tokens of context and question together; the item is as long as whole sentences allow.
            count: text -> tokens.

        Raises:
            UsageError: a length too short for the task.
        """
        if length < SHORTEST_LENGTH:
            raise UsageError(f"length {length} is too short for a task; give at least {SHORTEST_LENGTH} tokens")
        # A string seeds by its SHA-512, the same in every Python; the length is left out, so that items of two
        # lengths ask the same question.
        parameters = self.spec.removeprefix(self.name)
        rng = random.Random(f"{self.family or self.name}{parameters}|{seed}|{index}")
        return self.make(rng, index, length, count)


def require_positive(task: Task, **values: int) -> None:
    """Refuse parameters below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"task {task.name}: {name}={value} must be at least 1")


def chosen_depth(task: Task, depth: float | None, rng: random.Random) -> float:
    """The depth asked for, or one drawn evenly.

    Raises:
        UsageError: outside 0 to 1.
    """
    drawn = rng.random()
    if depth is None:
        return drawn
    if not 0 <= depth <= 1:
        raise UsageError(f"task {task.name}: depth={depth:g} lies outside 0 to 1")
    return depth
