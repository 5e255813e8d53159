"""Signals: what a pass over a sequence can record for rules to read, one file each. Adding one touches no list.

    class Digits(TokenSignal):
        name, about = "digits", "1 where a token's id is even"

        def recording(self, number, setting):
            return DigitsRecording(self.key(number), setting)

    register(Digits())

A signal says how it is recorded (over a context and while a sequence grows alike), how it is kept on disk, what
becomes of it when tokens are evicted, and what it costs in memory; recorder, trace, trace store and memory formula loop
over the signals that the rules at hand declare. Rules read `trace.signal("digits")`.
"""

from forward_influence.tracing.signals.base import Cost, Recording, Setting, Signal
from forward_influence.tracing.signals.registry import known, parsed, register
from forward_influence.tracing.signals.tokens import TokenRecording, TokenSignal

__all__ = [
    "Cost",
    "Recording",
    "Setting",
    "Signal",
    "TokenRecording",
    "TokenSignal",
    "known",
    "parsed",
    "register",
]
