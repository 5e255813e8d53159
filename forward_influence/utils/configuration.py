"""Configurations: dataclasses whose fields say what they are, in words.

A field made by `option` carries its help, its group, its limits and how it is typed. The command line builds its
options from that, a `--config` file its keys, the docstring its attributes, and a manifest what decides results.
Messages name fields in backticks: Python reads them so, and the command line turns them into options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from forward_influence.errors import UsageError, did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=type)

#: Groups in the order in which they are shown.
BASICS = "Basics"
MEASURED = "What is measured"
BUDGETS = "Budget and protection"
READING = "How results are read"
HARDWARE = "Hardware"
CLUSTER = "Cluster"
GROUPS = (BASICS, MEASURED, BUDGETS, READING, HARDWARE, CLUSTER)
_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """What a field of a configuration says of itself.

    Attributes:
        help: what it is, for people.
        group: one of `GROUPS`.
        typed: its name where it is typed, with underscores: `selector` of the field `selectors`.
        off: what is typed for a flag that is not to be; the name after `no_` otherwise.
        shown: what its default comes to, where the value does not tell.
        least, most: limits of a number.
        choices: the texts that it, or each of several, can be.
        metavar: what stands for its value in help.
        read: makes the value of a text that is typed; its errors name the field.
        decides: whether results depend on it, so that it is part of what identifies a run.
        alike: whether runs must agree in it to be compared.
    """

    help: str
    group: str
    typed: str | None = None
    off: str | None = None
    shown: str | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    read: Callable[[str], Any] | None = None
    decides: bool = True
    alike: bool = False


def option(default: T, help: str, group: str, **more: Any) -> T:
    """A field of a configuration; `more` as in `Option`."""
    return field(default=default, metadata={_OPTION: Option(help, group, **more)})


def options_of(configuration: type) -> dict[str, Option]:
    """What the fields of a configuration say of themselves, by the fields' names."""
    return {f.name: f.metadata[_OPTION] for f in fields(configuration) if _OPTION in f.metadata}


def described(configuration: C) -> C:
    """Class decorator: the fields' help, as the attributes of its docstring."""
    lines = [f"        {name}: {said.help}" for name, said in options_of(configuration).items()]
    configuration.__doc__ = "\n".join([f"{configuration.__doc__}\n", "    Attributes:", *lines, ""])
    return configuration


@dataclass(frozen=True)
class Configuration:
    """Base class: limits and choices are checked when one is made.

    Raises:
        UsageError: a value beyond its limits.
    """

    def __post_init__(self) -> None:
        for name, said in options_of(type(self)).items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if said.choices and one is not None and one not in said.choices:
                    known = f"{', '.join(said.choices[:-1])} or {said.choices[-1]}"
                    raise UsageError(f"`{name}` {one} is unknown{did_you_mean(str(one), said.choices)}; it is {known}")
            if value is None or isinstance(value, str | tuple):
                continue
            if said.least is not None and not value >= said.least:
                raise UsageError(f"`{name}` {value:g} is {_short_of(value, said.least)}")
            if said.most is not None and not value <= said.most:
                raise UsageError(f"`{name}` {value:g} is too large; give at most {said.most:g}")


def _short_of(value: float, least: float) -> str:
    return "negative; give 0 or more" if least == 0 else f"too small; give at least {least:g}"
