"""Sets of whole numbers as one types them: 0-9,12."""

from __future__ import annotations

from collections.abc import Iterable

from forward_influence.errors import UsageError

#: No model has a layer or a head of this number; a range up to 10^11 is a slip, and would fill the memory.
_MOST_NUMBERS = 10_000


def whole_numbers(text: str | None, what: str) -> tuple[int, ...] | None:
    """The numbers that "0-9" or "0,2,5-7" means; None for None.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        ends = [low, high or low] if high or not dash else [low, ""]
        if not all(end.isascii() and end.isdecimal() and len(end) < 10 for end in ends) or int(ends[1]) < int(ends[0]):
            raise UsageError(f"{what} {text} is not a list of numbers; write 0-9 or 0,2,5-7")
        if int(ends[1]) >= _MOST_NUMBERS:
            raise UsageError(f"{what} {text} goes beyond what any model has; write 0-9 or 0,2,5-7")
        numbers.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(numbers))


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as one types them, 0-9,12."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
