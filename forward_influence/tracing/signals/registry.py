"""Signals by the name that rules declare."""

from __future__ import annotations

import importlib

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.tracing.signals.base import Signal
from forward_influence.utils.discovery import load_modules

_signals: dict[str, Signal] = {}
_discovered = False


def register(signal: Signal) -> Signal:
    """Make a signal known by its name.

    Raises:
        UsageError: no name that a need can spell, or another signal's.
    """
    if not signal.name.isidentifier():
        raise UsageError(f"a signal named {signal.name!r} cannot be declared; use letters, digits and _")
    before = _signals.get(signal.name)
    if before is not None and _origin(before) != _origin(signal):
        raise UsageError(f"a signal named {signal.name!r} exists already ({_origin(before)[0]}); choose another name")
    _signals[signal.name] = signal
    return signal


def _origin(signal: Signal) -> tuple[str, str]:
    """Where its class was written: a file that is loaded again may register it again."""
    return type(signal).__module__, type(signal).__qualname__


def known() -> dict[str, Signal]:
    """Name -> signal: those of this package, imported once, and what was registered beside them."""
    global _discovered
    if not _discovered:
        _discovered = True  # the modules look up nothing while they are imported
        load_modules(importlib.import_module("forward_influence.tracing.signals"))
    return dict(sorted(_signals.items()))


def parsed(need: str) -> tuple[Signal, int]:
    """The signal that a need names and its number; 0 for signals that take none.

    Raises:
        UsageError: an unknown signal.
    """
    name, _, number = need.partition(":")
    signals = known()
    if name not in signals or (number and not number.isdigit()):
        raise UsageError(
            f"unknown signal {need!r} in a rule's needs{did_you_mean(name, list(signals))}; "
            f"there are {', '.join(signals)}"
        )
    signal = signals[name]
    return signal, 0 if signal.default is None else int(number or signal.default)
