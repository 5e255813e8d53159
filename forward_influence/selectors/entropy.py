"""Predictive entropy: how uncertain the model was."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.information import check_entropy
from forward_influence.selectors.registry import selector
from forward_influence.tracing.signals.entropy import DEFAULT_TOP_K, entropy_need
from forward_influence.tracing.trace import Trace


@selector("entropy", source="arXiv:2606.26875")
@dataclass(frozen=True, kw_only=True)
class Entropy(Selector):
    """Predictive entropy: how uncertain the model was about a token before it came.

    Attributes:
        top_k: softmax over the k largest logits only; 0 for the whole vocabulary.
        alignment: "own": of the distribution that the token was drawn from; "next": of the one that the model gives at
            the token, which says how uncertain it is about what comes after.
    """

    top_k: int = DEFAULT_TOP_K
    alignment: str = "own"

    def validate(self) -> None:
        """Nothing negative, a known alignment."""
        check_entropy(self, self.top_k, self.alignment)

    @property
    def needs(self) -> frozenset[str]:
        """Entropy with this top_k and alignment."""
        return frozenset({entropy_need(self.top_k, self.alignment)})

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return trace.entropy_of(self.top_k, self.alignment)
