"""KVzip (arXiv:2505.23416): what a model attends to while it repeats the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.budgets import adaptive_head_counts
from forward_influence.selectors.reconstruction import reconstruction_scores
from forward_influence.selectors.registry import selector
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.signals.second_reading import DEFAULT_PIECE
from forward_influence.tracing.trace import Trace

SPREADS = ("model", "layer", "even")


@selector("kvzip", source="KVzip, arXiv:2505.23416")
@dataclass(frozen=True, kw_only=True)
class KVzip(Selector):
    """The most attention an entry gets from any query while the model, asked to, repeats the context.

    After the context the model reads a request to repeat it and the context again, in pieces. A repeated query's
    attention is taken over the first tokens, its piece and what was read of the repetition; the maximum over queries
    and the group counts. Entries of all layers and heads compete for one budget. It costs a second prefill, over up to
    twice the context's length (kvpress says 2 to 3 times the first alone), and works once, on a whole prompt. The
    request's words and pieces are those of the authors and of kvpress, the end of a turn of the chat template included.

    Attributes:
        piece: tokens of the context that are repeated in one pass.
        sinks: first tokens, which every repeated query may attend to; they rank first.
        asked: whether the request is put in words, which takes the model's tokenizer; false reads the context alone.
        spread: what competes for one budget: the whole model, the heads of a layer, or "even", nothing.
    """

    piece: int = DEFAULT_PIECE
    sinks: int = 4
    asked: bool = True
    spread: str = "model"

    weighed: ClassVar[bool] = False

    def validate(self) -> None:
        """Pieces of a token at least, a known spread that the grain allows."""
        if self.piece < 1 or self.sinks < 0:
            raise UsageError(f"{self.name}: piece is a number of tokens from 1, sinks one from 0")
        if self.spread not in SPREADS:
            raise UsageError(f"{self.name}: spread={self.spread} is unknown; it is one of {', '.join(SPREADS)}")
        if self.spread != "even" and (self.per != "entry" or self.heads != "equal"):
            raise UsageError(f"{self.name}: per and heads need spread=even, for else all heads compete already")

    @property
    def needs(self) -> frozenset[str]:
        """The model, once more."""
        return frozenset({f"second_reading:{self.piece}"})

    @property
    def own_budgets(self) -> bool:
        """Unless nothing competes."""
        return self.spread != "even" or super().own_budgets

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        key = ("reconstruction", self.piece, self.sinks, self.asked, self.weighed)
        scores: Tensor = trace.memo(
            key, lambda: reconstruction_scores(trace, self.piece, self.sinks, self.asked, self.weighed)
        )
        return scores

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """As many as each layer and head has of the best, at least 1."""
        if self.spread == "even":
            return number
        layers, heads, n = scores.shape
        shape = (1, layers * heads, n) if self.spread == "model" else scores.shape
        even = torch.full(shape[:2], number, device=scores.device)
        candidates = Candidates(n, trace.first, trace.last)
        return adaptive_head_counts(scores.reshape(shape), candidates, even, safeguard=0).reshape(layers, heads)
