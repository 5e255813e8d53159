"""Surprisal: -log p of each token given what came before it."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.tracing.signals.base import Logits, Setting
from forward_influence.tracing.signals.registry import register
from forward_influence.tracing.signals.tokens import TokenRecording, TokenSignal


class Surprisal(TokenSignal):
    """-log p_{i-1}(x_i) in nats; 0 for the first token, which nothing predicts."""

    name = "surprisal"
    about = "-log p of each token; needs the head on the context"
    head = True

    def recording(self, number: int, setting: Setting) -> TokenRecording:
        """Each token's comes from the distribution before it."""
        return _Recording(self.key(number), setting)


class _Recording(TokenRecording):
    _before: Tensor | None = None  # (1, vocabulary) log p after the last token: it waits for the next one

    def logits(self, block: Logits) -> None:
        if block.tokens is None:
            raise UsageError("surprisal needs token ids; call the model with input_ids, not with embeddings")
        log_p = block.rows.log_softmax(-1)
        tokens = block.tokens.to(log_p.device)[:, None]
        first = log_p.new_zeros(1) if self._before is None else -self._before.gather(-1, tokens[:1])[:, 0]
        self.add(torch.cat([first, -log_p[:-1].gather(-1, tokens[1:])[:, 0]]))
        self._before = log_p[-1:].clone()


register(Surprisal())
