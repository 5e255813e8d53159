"""How faithful a model stays while its cache is compressed: its distributions against the full cache's, teacher-forced.

The continuation is the document's own text or what the model itself wrote with the full cache; with `every` the cache
is compressed again as it grows, at the same moments as in generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.compression import Compressor, Outcome, compress
from forward_influence.influence.ablation import Ablation
from forward_influence.influence.full_run import Continuation
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.forward import parts, run
from forward_influence.models.loading import Model


class CompressedRun:
    """Runs a context and a continuation over a cache that compresses itself.

    Args:
        model: the model.
        compressor: what compresses.
        context: (n,) token ids.
        seed: of random rules.
        chunk: tokens per forward pass, at most.

    Attributes:
        outcome: what was held and chosen; None before it ran.
    """

    def __init__(self, model: Model, compressor: Compressor, context: Tensor, seed: int, chunk: int) -> None:
        self.model, self.compressor, self.context = model, compressor, context
        self.seed, self.chunk = seed, chunk
        self.outcome: Outcome | None = None

    def __call__(self, continuation: Tensor) -> Tensor:
        """Last hidden states (m, hidden) of a continuation (m,)."""
        span = len(self.context) + len(continuation)
        inner, device = backbone(self.model.model), self.model.device
        hidden = []
        with torch.no_grad(), compress(self.model, self.compressor, seed=self.seed, span=span) as cache:
            run(inner, self.context.to(device)[None], cache)
            # no pass reaches over the moment at which the cache is compressed
            for block in continuation.split(self.compressor.schedule.every or len(continuation)):
                for part in parts(inner, block, cache, self.chunk):
                    hidden.append(run(inner, part[None], cache)[0][0])
            self.outcome = Outcome.after(cache.stats)
        return torch.cat(hidden)


@dataclass(frozen=True, kw_only=True)
class Compression(Ablation):
    """An ablation whose cache goes on changing while the continuation runs.

    Attributes:
        run: the context and the continuation over that cache.
    """

    run: CompressedRun

    @property
    def runs(self) -> int:
        """The context is read again before the continuation."""
        return len(self.run.context) + self.length

    def hidden(self, continuation: Continuation) -> Tensor:
        """Last hidden states at the positions that are measured, (p, hidden)."""
        length = self.length if self.positions is None else int(self.positions[-1]) + 1
        hidden = self.run(continuation.tokens[:length])
        return hidden if self.positions is None else hidden[self.positions.to(hidden.device)]
