"""How tokens may follow a cache: found out once per model, obeyed by everything that runs it.

Keys and values let a text be cut anywhere. States do not always: the scan of Mamba 1 starts from nothing in every chunk
of several tokens, Bamba numbers its tokens from 0 in every chunk unless it is told, and Nemotron-H leaves out the clamp
of its time steps where a token comes alone. `architecture.examine` tries which of it a model needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from forward_influence.errors import UsageError


@dataclass(frozen=True)
class Steps:
    """How a model's tokens may follow what its cache has seen.

    Attributes:
        single: one at a time, once something was seen; at first any number.
        numbered: their positions have to be said.
        joined: a last token that would come alone goes with those before it, for states are not always the same then.
        alone: whether a token that comes alone gives what it gives among others.
    """

    single: bool = False
    numbered: bool = False
    joined: bool = False
    alone: bool = True

    def lengths(self, count: int, seen: int, chunk: int) -> list[int]:
        """The lengths of the passes in which `count` tokens may follow `seen` others, about `chunk` each."""
        if self.single:
            return [1] * count if seen else [count]
        whole, rest = divmod(count, chunk)
        lengths = [chunk] * whole + [rest] * (rest > 0)
        if self.joined and rest == 1 and whole:
            lengths[-2:] = [chunk + 1]
        return lengths

    def positions(self, count: int, seen: int, device: torch.device) -> dict[str, Tensor]:
        """The argument that numbers tokens, (1, count), where it is needed; else none."""
        return {"position_ids": torch.arange(seen, seen + count, device=device)[None]} if self.numbered else {}

    def described(self) -> str:
        """In words, as a manifest has it."""
        words = "one token at a time" if self.single else "chunks"
        return f"{words}, positions given" if self.numbered else words


def require_alone(steps: Steps) -> None:
    """Refuse what runs tokens each by itself over states, where a token alone gives something else.

    Raises:
        UsageError: it does.
    """
    if not steps.alone:
        raise UsageError(
            "a token that this model reads alone gives other logits than among others (its states are not updated "
            "alike), so that direct effects are not available for it; measure `effect` total"
        )


_found: WeakKeyDictionary[nn.Module, Steps] = WeakKeyDictionary()


def steps_of(module: nn.Module) -> Steps:
    """How a model, or its decoder, wants its tokens; in any way as long as nobody found out."""
    return _found.get(module, Steps())


def remember(modules: list[Any], steps: Steps) -> None:
    """A model and its decoder want their tokens in this way."""
    for module in modules:
        _found[module] = steps
