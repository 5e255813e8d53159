"""Tasks by name."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from forward_influence.data.tasks.base import Task
from forward_influence.data.tasks.facts import Facts
from forward_influence.data.tasks.passcode import Passcode
from forward_influence.data.tasks.reasoning import Reasoning, ReasoningWithThought
from forward_influence.data.tasks.retrieval import Needle, NeedleMultikey, NeedleMultivalue
from forward_influence.data.tasks.thinking import Thinking
from forward_influence.data.tasks.variables import Variables
from forward_influence.errors import UsageError, did_you_mean

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Needle,
        NeedleMultikey,
        NeedleMultivalue,
        Variables,
        Facts,
        Reasoning,
        ReasoningWithThought,
        Thinking,
        Passcode,
    )
}


def parse_task(text: str) -> Task:
    """Make a task from its specification, `name` or `name:key=value,key=value`.

    Raises:
        UsageError: unknown task or parameter (with a suggestion), or a value of the wrong kind.
    """
    name, _, rest = text.strip().partition(":")
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}{did_you_mean(name, list(TASKS))}; there are {', '.join(TASKS)}")
    cls = TASKS[name]
    hints = get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"task {text!r}: {part!r} is not key=value")
        if key not in fields:
            raise UsageError(f"task {name!r} has no parameter {key!r}{did_you_mean(key, fields)}; it has {fields}")
        given[key] = _value(name, key, value, hints[key])
    return cls(**given)


def _value(task: str, key: str, value: str, kind: Any) -> Any:
    if kind is str:
        return value
    whole = kind is int
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise UsageError(f"task {task}: {key}={value} is not {'a whole number' if whole else 'a number'}") from None
