"""Who is to blame: what goes wrong in a rule is reported in one line with the rule's name and its place in a file."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from forward_influence.errors import ForwardInfluenceError, UsageError

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_INSTALLED = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib"))


def home(rule: Any) -> str:
    """The text " (file, line N)": where a rule's own code begins; nothing for rules of this package.

    Args:
        rule: a rule, or its class.
    """
    for code in _codes(rule if isinstance(rule, type) else type(rule)):
        if not code.co_filename.startswith(_PACKAGE):
            return f" ({code.co_filename}, line {code.co_firstlineno})"
    return ""


def _codes(cls: type) -> Iterator[CodeType]:
    """Code of the function that a rule was made of, or of the class's `scores`, then of what else the class defines."""
    own = [getattr(found, "fget", found) for found in vars(cls).values()]
    own = [found for found in own if getattr(found, "__module__", None) == cls.__module__]
    for found in (getattr(cls, "function", None), getattr(cls, "scores", None), *own):
        code = getattr(inspect.unwrap(found) if callable(found) else None, "__code__", None)
        if code is not None and code.co_filename != "<string>":  # as `dataclass` writes it
            yield code


def refusal(rule: Any, text: str) -> UsageError:
    """An error about what a rule did, `text`, with its name and place."""
    return UsageError(f"rule {rule.name!r} {text}{home(rule)}")


def guarded(rule: Any, call: Callable[[], Any]) -> Any:
    """What a rule's own code returns; what it raises gets the rule's name and line."""
    try:
        return call()
    except ForwardInfluenceError as error:
        place = _own_place(error)
        line = f" ({place[0]}, line {place[1]})" if place else home(rule)
        raise type(error)(f"rule {rule.name!r}: {error}{line}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise  # of this document, not of the rule
    except (Exception, SystemExit) as error:
        raise UsageError(f"rule {rule.name!r} failed: {_where(rule, error)}") from error


def _where(rule: Any, error: BaseException) -> str:
    """The kind of an error, its first line, and the innermost place in the rule's own file, or where that begins."""
    text = next(iter(str(error).splitlines()), "")
    place = _own_place(error)
    if place is None and (begins := home(rule)):
        return f"{type(error).__name__}: {text}{begins}"
    file, line = place or _frames(error)[-1]
    return f"{type(error).__name__}: {text} ({file}, line {line})"


def _frames(error: BaseException) -> list[tuple[str, int]]:
    return [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]


def _own_place(error: BaseException) -> tuple[str, int] | None:
    """The innermost (file, line) outside this package and installed ones: the line of a rule of one's own."""
    strangers = (_PACKAGE, *_INSTALLED)
    own = [f for f in _frames(error) if not f[0].startswith(strangers) and "site-packages" not in f[0]]
    return own[-1] if own else None
