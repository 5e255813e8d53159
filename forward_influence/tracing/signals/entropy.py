"""Predictive entropy of each token, of the distribution before it or after it (arXiv:2606.26875)."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.tracing.signals.base import Logits, Setting
from forward_influence.tracing.signals.registry import register
from forward_influence.tracing.signals.tokens import TokenRecording, TokenSignal
from forward_influence.utils.numerics import entropy

DEFAULT_TOP_K = 256
#: Whose uncertainty a token's predictive entropy is: about the token itself, or about what comes after it.
ALIGNMENTS = ("own", "next")


def entropy_need(top_k: int, alignment: str) -> str:
    """The need of a rule that reads `trace.entropy_of(top_k, alignment)`."""
    return f"entropy:{top_k}" if alignment == "own" else f"next_entropy:{top_k}"


def of_own_token(given: Tensor, before: Tensor | None = None) -> Tensor:
    """Each token's own entropy of those of the distributions given at the tokens, (q,): the one before it.

    Args:
        before: (1,) given at the token before the first; None where nothing predicts that: 0.
    """
    return torch.cat([given.new_zeros(1) if before is None else before, given[:-1]])


class NextEntropy(TokenSignal):
    """How uncertain the model is about what comes after each token."""

    name = "next_entropy"
    about = "the same of what comes after each token: of the distribution that the model gives there"
    label = "entropy"
    default = DEFAULT_TOP_K
    head = True

    def recording(self, number: int, setting: Setting) -> TokenRecording:
        """Over the `number` largest logits; 0 for all."""
        return _NextRecording(self.key(number), number, setting)


class Entropy(NextEntropy):
    """How uncertain the model was about each token before it came; 0 for the first, which nothing predicts."""

    name = "entropy"
    about = "predictive entropy of each token from the K largest logits (0: all): the head runs on the context"

    def recording(self, number: int, setting: Setting) -> TokenRecording:
        """Over the `number` largest logits; 0 for all."""
        return _OwnRecording(self.key(number), number, setting)


class _NextRecording(TokenRecording):
    def __init__(self, key: str, top_k: int, setting: Setting) -> None:
        super().__init__(key, setting)
        self._top_k = top_k

    def logits(self, block: Logits) -> None:
        self.add(self._given(block))

    def _given(self, block: Logits) -> Tensor:
        """(q,) of the distributions given at a block's tokens; both alignments come from them."""
        return block.memo(("entropy", self._top_k), lambda: entropy(block.rows, self._top_k))


class _OwnRecording(_NextRecording):
    _before: Tensor | None = None

    def logits(self, block: Logits) -> None:
        given = self._given(block)
        self.add(of_own_token(given, self._before))
        self._before = given[-1:].clone()


register(Entropy())
register(NextEntropy())
