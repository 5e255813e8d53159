"""What one pass has to record: the signals that rules declare, merged.

A need is a signal's name, with a number behind a colon where one applies: "entropy:256", "window:64". Only what some
rule declares is recorded, since some signals cost time (accumulated attention) or memory (window queries).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from forward_influence.tracing.signals import Signal, parsed


@dataclass(frozen=True)
class Needs:
    """Needs of one or several rules; make them with `merge`, which checks them.

    Attributes:
        texts: the needs, each with its number where it takes one.
    """

    texts: frozenset[str] = frozenset()

    @cached_property
    def asked(self) -> tuple[tuple[Signal, int], ...]:
        """Signals with the number asked for (0 where a signal takes none), in the order of the needs."""
        return tuple(parsed(need) for need in sorted(self.texts))

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers that a signal is asked for with; none where it is not asked for."""
        return tuple(number for signal, number in self.asked if signal.name == name)

    def __contains__(self, name: str) -> bool:
        return bool(self.numbers(name))

    @property
    def head(self) -> bool:
        """Whether the context's logits are needed."""
        return any(signal.head for signal, _ in self.asked)

    @property
    def hidden(self) -> bool:
        """Whether layers' outputs are."""
        return any(signal.hidden for signal, _ in self.asked)

    @property
    def rotation(self) -> bool:
        """Whether the model's rotary embedding is."""
        return any(signal.rotation for signal, _ in self.asked)

    @property
    def live(self) -> bool:
        """Whether all of it can be recorded while a sequence grows."""
        return all(signal.live for signal, _ in self.asked)

    @property
    def whole(self) -> bool:
        """Whether some of it is about a sequence of which every token is still held."""
        return any(signal.whole for signal, _ in self.asked)

    @property
    def reads_again(self) -> bool:
        """Whether the context goes through the model once more."""
        return any(signal.reads_again for signal, _ in self.asked)

    @property
    def looks_ahead(self) -> bool:
        """Whether the continuation is looked at, which only a measurement knows."""
        return any(signal.looks_ahead for signal, _ in self.asked)

    @staticmethod
    def merge(needs: Iterable[str]) -> Needs:
        """Parse and merge needs.

        Raises:
            UsageError: an unknown signal.
        """
        numbers: dict[Signal, set[int]] = {}
        for need in needs:
            signal, number = parsed(need)
            numbers.setdefault(signal, set()).add(number)
        families: dict[str, int] = {}
        for signal, found in numbers.items():
            families[signal.family] = max(families.get(signal.family, 0), *found)
        texts = set()
        for signal, found in numbers.items():
            if signal.largest:
                found = {families[signal.family] if signal.family else max(found)}
            texts |= {signal.need(number) for number in found}
        return Needs(frozenset(texts))
