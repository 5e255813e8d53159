"""Messages of the library name fields in backticks; on the terminal they are read as the options that people type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

#: Field -> the options that fill it and that switch it off, of the command that runs; of the others where it has none
#: of that name.
_OPTIONS: dict[str, tuple[str, str]] = {}
_FIELD = re.compile(r"`([a-z][a-z_]*)(=False)?`")


def learn(group: Any, command: Any) -> None:
    """Take in the options of all commands, those of the one that runs last.

    Args:
        group: click's, with commands by name, or the one command.
        command: click's, the one that runs.
    """
    _OPTIONS.clear()
    for one in (*_commands(group), command):
        for parameter in one.params:
            if typed := [text for text in parameter.opts if text.startswith("--")]:
                off = [text for text in parameter.secondary_opts if text.startswith("--")]
                _OPTIONS[parameter.name] = (typed[0], off[0] if off else f"--no-{typed[0][2:]}")


def _commands(group: Any) -> Iterator[Any]:
    """All commands, those of groups within groups too."""
    yield group
    for command in getattr(group, "commands", {}).values():
        yield from _commands(command)


def in_options(text: str) -> str:
    """A message with `field` as --option and `field=False` as what switches it off; what is no field stays as it is."""

    def option(found: re.Match[str]) -> str:
        typed = _OPTIONS.get(found.group(1))
        if typed is None:
            return found.group()
        return typed[1] if found.group(2) else typed[0]

    return _FIELD.sub(option, text)
