"""reasoning-gym problems solved in a chain of thought: nearly all tokens are the model's own, so that what a cache
loses is what it wrote."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from forward_influence.data.tasks.base import Count, Item, Task, require_positive
from forward_influence.data.tasks.scoring import final_part, number_matches
from forward_influence.errors import UsageError, did_you_mean

#: reasoning-gym's problems, and the settings that differ from its own: small enough for small models.
THOUGHTS: dict[str, dict[str, Any]] = {
    "gsm_symbolic": {},
    "chain_sum": {"min_terms": 4, "max_terms": 6, "min_digits": 2, "max_digits": 2},
    "countdown": {"min_numbers": 3, "max_numbers": 4, "max_value": 30, "min_target": 10, "max_target": 99},
    "knights_knaves": {},
    "propositional_logic": {},
}
_NUMBERS = ("gsm_symbolic", "chain_sum")
_ASK = "Think step by step, and end with: The answer is"
_BITS = 31
_PREMISE = re.compile(r"^\.?\d+\. (.+)$", re.MULTILINE)


@lru_cache(maxsize=64)
def _problems(name: str, seed: int) -> Any:
    """reasoning-gym's data set of the one problem of that seed."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UsageError('task thinking needs an extra: pip install "forward-influence[evaluate]"') from error
    return reasoning_gym.create_dataset(name, size=1, seed=seed, **THOUGHTS[name])


@dataclass(frozen=True, kw_only=True)
class Thinking(Task):
    """A problem solved step by step; `length` is the longest that its text may be.

    Attributes:
        problem: which of reasoning-gym's: gsm_symbolic, chain_sum, countdown, knights_knaves, propositional_logic.
        tokens: the longest answer.
    """

    problem: str = "gsm_symbolic"
    tokens: int = 512

    name: ClassVar[str] = "thinking"
    summary: ClassVar[str] = "a reasoning-gym problem solved in a chain of thought, with nothing around it"
    reasons: ClassVar[bool] = True
    fills: ClassVar[bool] = False
    until: ClassVar[tuple[str, ...]] = ()

    @property
    def answer_tokens(self) -> int:  # type: ignore[override]
        """The longest answer in tokens."""
        return self.tokens

    def validate(self) -> None:
        """A known problem, and room to think."""
        require_positive(self, tokens=self.tokens)
        if self.problem not in THOUGHTS:
            raise UsageError(
                f"task {self.name}: problem={self.problem} is unknown{did_you_mean(self.problem, list(THOUGHTS))}; "
                f"it is one of {', '.join(THOUGHTS)}"
            )

    def make(self, rng: random.Random, index: int, length: int, count: Count) -> Item:
        """One item."""
        entry = _problems(self.problem, rng.getrandbits(_BITS))[0]
        answer = entry["answer"] or entry["metadata"]["example_answer"]
        told = entry["question"].strip()
        evidence = tuple(_PREMISE.findall(told)) if self.problem == "propositional_logic" else ()
        if (needed := count(f"{told}\n\n{_ASK}")) > length:
            raise UsageError(f"task {self.spec}: item {index} takes {needed} tokens; give `lengths` {needed} or more")
        return Item(self.spec, index, length, None, told, _ASK, "", (str(answer),), evidence)

    def score(self, item: Item, response: str) -> float:
        """1 where the answer is right: a number, or whatever reasoning-gym gives full marks."""
        if self.problem in _NUMBERS:
            return float(number_matches(response, item.answers[0], first=False))
        said = _stated(response)
        entry: dict[str, Any] = {"answer": item.answers[0], "metadata": {}}
        if self.problem == "countdown":
            # the operands and the value of the expression that is known to be right
            said = said.split("=")[0].strip()
            solution = item.answers[0]
            entry["metadata"] = {
                "numbers": [int(n) for n in re.findall(r"\d+", solution)],
                "target": _value(solution),
            }
        elif self.problem == "propositional_logic":
            variables = sorted(set(re.findall(r"[A-Z]", " ".join(item.evidence))))
            entry["metadata"] = {"premises": list(item.evidence), "variables": variables}
        return float(_problems(self.problem, 0).score_answer(said, entry) == 1)


def _stated(response: str) -> str:
    """What stands as the answer: the line behind "the answer is", bare of the marks that models put around it."""
    lines = [line.strip(" *`$:.\t") for line in final_part(response).splitlines()]
    return next((line for line in lines if line), "")


def _value(expression: str) -> float:
    """The value of an arithmetic expression."""
    from sympy import sympify

    return float(sympify(expression))
