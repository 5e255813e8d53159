"""What a rule is, read from its class: for `forward-influence selectors` and the docs, so that neither goes stale."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.tracing.needs import Needs

_SECTION = re.compile(r"^(Attributes|Class attributes|Example|Raises|Args|Returns):$")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rule: its name, the type and default as typed, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Explained:
    """A rule in words.

    Attributes:
        name: what users type.
        summary: the first line of its docstring; nothing where it has none.
        details: the rest of it, sections apart.
        source: where it comes from.
        parameters: its own first, then those that every rule has.
        needs: signals that it reads with its default parameters; None where it cannot be made without any.
        window: tokens at the end that it protects, with its defaults.
        again: whether the context goes through the model once more for it, with its defaults.
        stochastic: whether it draws at random.
        example: a specification to try.
    """

    name: str
    summary: str
    details: str
    source: str
    parameters: tuple[Parameter, ...]
    needs: tuple[str, ...] | None
    window: int
    again: bool
    stochastic: bool
    example: str


def explained(cls: type[Selector]) -> Explained:
    """Explain a rule's class."""
    text = _docstring(cls)
    prose = _prose(text)
    summary, _, details = prose.partition("\n\n")
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= _attributes(_docstring(base))
    fields = [f for f in dataclasses.fields(cls) if f.name != "seed"]
    shared = {f.name for f in dataclasses.fields(Selector)}
    parameters = [
        Parameter(f.name, _kind(f.type), _default(f), meanings.get(f.name, ""))
        for f in sorted(fields, key=lambda f: f.name in shared)
    ]
    try:
        rule = cls()
        needs: tuple[str, ...] | None = tuple(sorted(rule.needs))
        window, again = rule.observation_window, Needs.merge(rule.needs).reads_again
    except (UsageError, TypeError):
        needs, window, again = None, 0, False
    return Explained(
        cls.name,
        " ".join(summary.split()),
        details.strip(),
        cls.source,
        tuple(parameters),
        needs,
        window,
        again,
        cls.stochastic,
        cls.example or _example(cls.name, parameters),
    )


def _docstring(cls: type) -> str:
    """What a class's author wrote; `dataclass` writes the signature where that is nothing."""
    text = vars(cls).get("__doc__") or ""
    return "" if text.startswith(f"{cls.__name__}(") else inspect.cleandoc(text)


def _example(name: str, parameters: list[Parameter]) -> str:
    first = parameters[0]
    return f"{name}:per=token" if first.name == "per" else f"{name}:{first.name}={first.default}"


def _prose(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if _SECTION.match(line):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def _attributes(text: str) -> dict[str, str]:
    """Name -> meaning, from an "Attributes:" section; several names may share one entry."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        if _SECTION.match(line):
            inside = line == "Attributes:"
        elif inside and (match := re.match(r"^    (\w+(?:, \w+)*): (.*)$", line)):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2].strip())
        elif inside and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _kind(annotation: Any) -> str:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    words = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}
    return " or ".join(words.get(part.strip(), part.strip().lower()) for part in name.split("|"))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default == "":
        return "required"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
