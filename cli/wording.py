"""Messages of the library name fields in backticks; on the terminal they are read as the options that people type."""

from __future__ import annotations

import re
from typing import Any

#: Field -> the option that fills it, of the command that runs; of the others where it has none of that name.
_OPTIONS: dict[str, str] = {}
_FIELD = re.compile(r"`([a-z][a-z_]*)(=False)?`")


def learn(group: Any, arguments: list[str]) -> None:
    """Take in the options of all commands, those of the one that `arguments` begin with last.

    Args:
        group: click's, with commands by name.
    """
    _OPTIONS.clear()
    named = group.commands.get(arguments[0]) if arguments else None
    for command in (*group.commands.values(), named):
        for parameter in getattr(command, "params", ()):
            if typed := [text for text in parameter.opts if text.startswith("--")]:
                _OPTIONS[parameter.name] = typed[0]


def in_options(text: str) -> str:
    """A message with `field` as --option, and `field=False` as --no-option; what is no field stays as it is."""

    def option(found: re.Match[str]) -> str:
        typed = _OPTIONS.get(found.group(1))
        if typed is None:
            return found.group()
        return f"--no-{typed[2:]}" if found.group(2) else typed

    return _FIELD.sub(option, text)
