"""What to evaluate, checked: the plan of an evaluation, and the pieces of work that it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forward_influence.compression.contenders import (
    CONTROL,
    CONTROL_WHILE_DECODING,
    Contender,
    contenders,
    narrowed,
)
from forward_influence.data.tasks import Task, parse_task
from forward_influence.errors import UsageError
from forward_influence.evaluation.choices import EvaluationChoices
from forward_influence.evaluation.prompts import PROTOCOLS
from forward_influence.instrument.batch import can_stack
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.selectors.protection import parse_protected
from forward_influence.storage.evaluation import FULL, part_stem
from forward_influence.utils.configuration import described

#: Of compressors, where neither they nor what is held are given.
_BUDGETS = ("0.4", "0.2")


@described
@dataclass(frozen=True)
class Plan(EvaluationChoices):
    """What to evaluate, checked.

    The full cache, with which everything is paired, and a random control are always among the compressors: `random`, or
    with `every` `random-protected`, which keeps the prompt whole (where as many entries are held as a length has
    tokens, or fewer, `random` again). A task may also be given as a `Task`.
    """

    contenders: tuple[Contender, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("no task; name one with `tasks`, needle or variables say")
        super().__post_init__()
        tasks = tuple(parse_task(task) if isinstance(task, str) else task for task in self.tasks)
        object.__setattr__(self, "tasks", tasks)
        specs = [task.spec for task in tasks]
        for spec in specs:
            if specs.count(spec) > 1:
                raise UsageError(f"task {spec} is given twice; give it once")
        counts = (self.match_held,) if isinstance(self.match_held, int) else tuple(self.match_held)
        object.__setattr__(self, "match_held", counts)
        if self.match_held:
            if self.budgets:
                raise UsageError("`budgets` and `match_held` both say how much is held; give one of them")
            self._check_held()
        elif not self.budgets:
            object.__setattr__(self, "budgets", _BUDGETS)
        if self.runs > 1 and self.temperature == 0:
            raise UsageError(f"`runs` {self.runs} at temperature 0 would be the same; give `temperature` 0.7, say")
        whole = self.every is not None and all(count > max(self.lengths) for count in self.match_held)
        if self.keep_prompt == "all" and self.every is None:
            raise UsageError("`keep_prompt` all: only what is generated is compressed then; give `every` 256, say")
        if self.keep_prompt is None:
            object.__setattr__(self, "keep_prompt", "all" if whole else "own" if self.every is None else "none")
        control = CONTROL_WHILE_DECODING if whole and self.keep_prompt != "none" else CONTROL
        there = CONTROL in self.compressors and self.keep_prompt == "all"  # it spares the prompt, too
        if any(name != FULL for name in self.compressors) and control not in self.compressors and not there:
            object.__setattr__(self, "compressors", (*self.compressors, control))
        found = contenders(
            self.compressors,
            self.budgets,
            self.every,
            match_held=self.match_held,
            protect_first=self.protect_first,
            protect_last=None if self.protect_last is None else parse_protected(self.protect_last),
            keep_prompt={"all": True, "none": False}.get(str(self.keep_prompt)),
        )
        object.__setattr__(self, "protect_last", found[0].protect_last)
        object.__setattr__(self, "contenders", tuple(found))

    def _check_held(self) -> None:
        """Refuse to hold as much as is ever seen."""
        seen = max(self.lengths) + (0 if self.every is None else max(task.answer_tokens for task in self.parsed_tasks))
        for count in self.match_held:
            if count >= seen:
                raise UsageError(
                    f"`match_held` {count}: no more than {seen} tokens are seen when a cache is compressed, so that "
                    "nothing would be removed; hold fewer"
                )

    @property
    def parsed_tasks(self) -> tuple[Task, ...]:
        """The tasks."""
        return tuple(task for task in self.tasks if not isinstance(task, str))

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols, each by itself."""
        return PROTOCOLS if self.protocol == "both" else (self.protocol,)

    @property
    def remarks(self) -> list[str]:
        """What readers of the results must know about compressors under these settings."""
        return narrowed(self.contenders)

    def most_at_once(self, cache: SelectiveCache) -> int | None:
        """How many answers to generate side by side, beside what memory says; None for no other limit."""
        return self.batch if can_stack(cache) else 1

    def seed_of(self, item: int, run: int) -> int:
        """Of random rules and of draws, the same for all compressors."""
        return self.seed * 1_000_003 + item + run * 1_000_000_007

    def configuration(self) -> dict[str, Any]:
        """What decides the results, in the manifest's names; what is as in folders made before it could be chosen is
        left out, so that those go on."""
        later: dict[str, Any] = {} if self.every is None else {"keep_prompt": self.keep_prompt}
        if self.temperature:
            later |= {"runs": self.runs, "temperature": self.temperature}
        return {
            **later,
            "tasks": [task.spec for task in self.parsed_tasks],
            "compressors": list(dict.fromkeys(c.name for c in self.contenders)),
            "budgets": list(self.budgets),
            "match_held": list(self.match_held),
            "protect_first": self.protect_first,
            "protect_last": self.protect_last,
            "lengths": list(self.lengths),
            "items": self.items,
            "protocols": list(self.protocols),
            "every": self.every,
            "chat": self.chat,
            "seed": self.seed,
        }

    def work(self) -> list[Work]:
        """Every item under every protocol."""
        return [
            Work(task, length, protocol, index)
            for index in range(self.items)  # items outermost: a stopped evaluation has some of everything
            for task in self.parsed_tasks
            for length in self.lengths
            for protocol in self.protocols
        ]


@dataclass(frozen=True)
class Work:
    """One item under one protocol: what a part holds."""

    task: Task
    length: int
    protocol: str
    index: int

    @property
    def stem(self) -> str:
        """Its part's file name."""
        return part_stem(self.task.spec, self.length, self.protocol, self.index)
