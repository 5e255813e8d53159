"""Long reasoning in the manner of LongReason (arXiv:2501.15089): a reasoning-gym problem whose sentences are spread
through a long document; the question itself comes at the end, answered with or without a chain of thought."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from forward_influence.data.tasks.base import Count, Item, Task
from forward_influence.data.tasks.filler import sentences, spread
from forward_influence.data.tasks.scoring import final_part, found, number_matches
from forward_influence.errors import UsageError, did_you_mean

#: reasoning-gym problems that are told in sentences, and how their answers are compared.
PROBLEMS = {"gsm_symbolic": "number", "aiw": "number", "family_relationships": "word"}
_INTRO = "A problem is told in the following text, its sentences spread among others. Find them; you will be asked."
_BITS = 31


@lru_cache(maxsize=256)
def _problem(name: str, seed: int) -> dict[str, Any]:
    """The problem of that seed: its question and answer."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UsageError('task reasoning needs an extra: pip install "forward-influence[evaluate]"') from error
    # a data set of one: some of reasoning-gym's draw something for every entry when they are made
    return dict(reasoning_gym.create_dataset(name, size=1, seed=seed)[0])


@dataclass(frozen=True, kw_only=True)
class Reasoning(Task):
    """A problem spread through filler, its answer given at once.

    Attributes:
        problem: which of reasoning-gym's: gsm_symbolic, aiw or family_relationships.
    """

    problem: str = "gsm_symbolic"

    name: ClassVar[str] = "reasoning"
    summary: ClassVar[str] = "a reasoning-gym problem whose sentences are spread through filler, answered directly"
    family: ClassVar[str] = "reasoning"
    answer_tokens: ClassVar[int] = 16
    ask: ClassVar[str] = "Give only the answer."
    prefix: ClassVar[str] = "The answer is"

    def validate(self) -> None:
        """A problem that is told in sentences."""
        if self.problem not in PROBLEMS:
            known = ", ".join(PROBLEMS)
            raise UsageError(
                f"task {self.name}: problem={self.problem} is unknown{did_you_mean(self.problem, list(PROBLEMS))}; "
                f"it is one of {known}"
            )

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item; with and without a chain of thought the same number is the same problem in the same filler."""
        entry = _problem(self.problem, rng.getrandbits(_BITS))
        told = sentences(entry["question"])
        asked = next((i for i, s in enumerate(told) if s.endswith("?")), len(told) - 1)
        pieces = told[:asked]
        question = " ".join(["The text above tells a problem in several sentences.", *told[asked:], self.ask])
        depths = [(i + rng.random()) / max(1, len(pieces)) for i in range(len(pieces))]
        context = spread(_INTRO, pieces, depths, length - count("\n\n" + question), rng, count)
        answers = (str(entry["answer"]),)
        depth = depths[0] if depths else None
        return Item(self.spec, index, length, depth, context, question, self.prefix, answers, tuple(pieces))

    def score(self, item: Item, response: str) -> float:
        """1 where the number (the first one; after a chain of thought the last) or the word is right."""
        if PROBLEMS[self.problem] == "number":
            return float(number_matches(response, item.answers[0], first=not self.reasons))
        return float(found(final_part(response), item.answers[0]))


@dataclass(frozen=True, kw_only=True)
class ReasoningWithThought(Reasoning):
    """The same with a chain of thought before the answer."""

    name: ClassVar[str] = "reasoning-cot"
    summary: ClassVar[str] = "the same problem with a chain of thought before the answer"
    reasons: ClassVar[bool] = True
    answer_tokens: ClassVar[int] = 256
    until: ClassVar[tuple[str, ...]] = ()
    ask: ClassVar[str] = "Think step by step, and end with: The answer is"
    prefix: ClassVar[str] = ""
