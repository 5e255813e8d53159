"""Rotations of pairs of channels, as rotary embeddings do them, and the ways in which models write them down.

Models differ in which channels make a pair (the two halves of the rotated part, or neighbours), in how much of a head
is rotated (its first channels, the others pass), and in how their rotary module gives the angles. `READINGS` are all of
them; which one a layer of a model uses is found by trying (rotary.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """A rotation per position of the first 2 x pairs channels of a head; the others stay as they are.

    Attributes:
        cos, sin: (positions, pairs); their squares need not add up to one (YaRN scales them, a mean is shorter).
        neighbours: whether channels 2 i and 2 i + 1 are a pair, and not i and pairs + i.
    """

    cos: Tensor
    sin: Tensor
    neighbours: bool = False

    def apply(self, plain: Tensor) -> Tensor:
        """Rotate (heads, positions, d); one position serves all."""
        return self._turned(plain, self.cos, self.sin)

    def undo(self, rotated: Tensor) -> Tensor:
        """What (heads, positions, d) was before it was rotated."""
        square = self.cos.square() + self.sin.square()
        return self._turned(rotated, self.cos / square, -self.sin / square)

    def plus(self, other: Turn) -> Turn:
        """Both turns one after the other, scaled once: what is read off at the sum of two positions."""
        scale = (other.cos.square() + other.sin.square()).sqrt()
        cos, sin = other.cos / scale, other.sin / scale
        return Turn(self.cos * cos - self.sin * sin, self.sin * cos + self.cos * sin, self.neighbours)

    def mean(self) -> Turn:
        """The mean over positions: rotating is linear in (cos, sin)."""
        return Turn(self.cos.mean(0, keepdim=True), self.sin.mean(0, keepdim=True), self.neighbours)

    def lengths(self, heads: Tensor) -> Tensor:
        """Lengths of the pairs of channels, of (heads, positions, d): (heads, positions, pairs)."""
        first, second = self._pairs(heads)
        return torch.hypot(first, second)

    def _pairs(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        pairs = self.cos.shape[-1]
        if self.neighbours:
            return heads[..., 0 : 2 * pairs : 2], heads[..., 1 : 2 * pairs : 2]
        return heads[..., :pairs], heads[..., pairs : 2 * pairs]

    def _turned(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        pairs = cos.shape[-1]
        cos, sin = cos.to(heads), sin.to(heads)
        turned = heads.clone()
        first, second = self._pairs(heads)
        if self.neighbours:
            turned[..., 0 : 2 * pairs : 2] = first * cos - second * sin
            turned[..., 1 : 2 * pairs : 2] = second * cos + first * sin
        else:
            turned[..., :pairs] = first * cos - second * sin
            turned[..., pairs : 2 * pairs] = second * cos + first * sin
        return turned


def no_turn(like: Tensor) -> Turn:
    """The rotation of layers that do not rotate, in `like`'s dtype and device."""
    return Turn(like.new_empty(1, 0), like.new_empty(1, 0))


@dataclass(frozen=True)
class Reading:
    """How a rotary module's output is read as a `Turn`.

    Attributes:
        order: (cos, sin) from the two tensors of the output.
        angles: picks one entry per pair from the last axis of each: some modules give each angle twice.
        neighbours: as of `Turn`.
    """

    order: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    angles: Callable[[Tensor], Tensor]
    neighbours: bool

    def turn(self, first: Tensor, second: Tensor) -> Turn:
        """The turn that the output's two (positions, width) tensors mean."""
        cos, sin = self.order(first, second)
        return Turn(self.angles(cos), self.angles(sin), self.neighbours)


def _straight(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first, second


def _backwards(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # NanoChat
    return first, -second


def _sine_first(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # GPT-J
    return second, first


def _first_half(values: Tensor) -> Tensor:
    return values[..., : values.shape[-1] // 2]


def _every_second(values: Tensor) -> Tensor:
    return values[..., ::2]


def _all(values: Tensor) -> Tensor:
    return values


READINGS = tuple(
    Reading(order, angles, neighbours)
    for order in (_straight, _backwards, _sine_first)
    for angles in (_first_half, _every_second, _all)
    for neighbours in (False, True)
)


def planes_of(output: object) -> tuple[Tensor, Tensor] | None:
    """What a rotary module gave as two tensors (sequences, positions, width); None for neither a pair nor complex.

    Sequences are those of a batch, or one for all of them. Where the axes of a picture come before them, which are
    equal for text, the first ones are the sequences of the first axis.
    """
    if isinstance(output, Tensor) and output.is_complex():
        output = (output.real, output.imag)
    if not (isinstance(output, tuple | list) and len(output) == 2):
        return None
    first, second = output
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape):
        return None
    if first.dim() < 2 or first.shape[-1] == 0 or not first.is_floating_point():
        return None
    return _planes(first), _planes(second)


def _planes(values: Tensor) -> Tensor:
    """(..., positions, width) -> (sequences, positions, width)."""
    return values.reshape(-1, *values.shape[-2:])


def fits(turn: Turn, head_size: int) -> bool:
    """Whether a head has as many channels as are rotated."""
    return 2 * turn.cos.shape[-1] <= head_size and bool(torch.isfinite(turn.cos).all())
