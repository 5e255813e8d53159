"""When a cache is compressed: after the prefill, every k tokens after that, or both."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """When to compress.

    Attributes:
        prefill: once, when the first pass (the prompt) is over.
        every: each time that so many tokens have come since the prompt or the last compression; None: never.
    """

    prefill: bool = True
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (isinstance(self.every, bool) or not isinstance(self.every, int)):
            raise UsageError(f"every={self.every!r} is not a whole number of tokens; give every=1024, say")
        if self.every is not None and self.every < 1:
            raise UsageError(f"every={self.every}: compress after at least one token, or leave it out")
        if not self.prefill and self.every is None:
            raise UsageError("this never compresses: with prefill=False give every=1024, say")

    def due(self, prompt: int, seen: int, last: int | None) -> bool:
        """Whether to compress now.

        Args:
            prompt: tokens of the first pass.
            seen: tokens that went through.
            last: tokens seen at the last compression, None before the first.
        """
        if seen == prompt:
            return self.prefill and last is None
        return self.every is not None and seen - (prompt if last is None else last) >= self.every

    def over(self, seen: int, prompt: int) -> bool:
        """Whether nothing will be compressed any more, so that nothing need be recorded."""
        return self.every is None and seen >= prompt
