"""Re-rotation and expected attention without rotating anything: the model itself runs at other positions.

With rotary embeddings a text has the same hidden states wherever it stands. So a token's queries and keys as they are
at any position come from passes over the whole text, moved so far that the token stands there.
"""

from __future__ import annotations

import brute_force
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from forward_influence.instrument.cache import text_config
from forward_influence.instrument.forward import run

SINKS = 4


class Moved:
    """Queries and keys of a text (n,) that stands `by` positions further on, by the model's own code.

    Args:
        model: in float64.
        tokens: (n,) token ids.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self._known: dict[int, dict[int, dict[int, tuple[Tensor, Tensor, Tensor]]]] = {}

    def _at(self, by: int) -> dict[int, dict[int, tuple[Tensor, Tensor, Tensor]]]:
        if by not in self._known:
            inputs: dict[int, dict[int, tuple[Tensor, Tensor, Tensor]]] = {}
            positions = torch.arange(len(self.tokens))[None] + by
            brute_force.logits_of_full_pass(self.model, self.tokens, inputs=inputs, position_ids=positions)
            self._known[by] = inputs
        return self._known[by]

    def queries(self, layer: int, by: int) -> Tensor:
        """(query_heads, n, d)."""
        heads = self._at(by)[layer]
        return torch.stack([heads[h][1] for h in sorted(heads)])

    def keys(self, layer: int, by: int, group: int) -> Tensor:
        """(kv_heads, n, d), where `group` query heads share one."""
        heads = self._at(by)[layer]
        return torch.stack([heads[h][2] for h in sorted(heads)[::group]])


def expected_attention(moved: Moved, layer: int, keys: Tensor, values: Tensor, future: int, scaling: float) -> Tensor:
    """Scores (kv_heads, n - 4) of Expected Attention by its formula, every rotated query from a pass of its own.

    Args:
        keys, values: (kv_heads, n, d) of the layer.
    """
    n = len(moved.tokens)
    rows = []
    for i in range(SINKS, n):  # the mean over the next positions of token i's query
        there = [moved.queries(layer, n + step - i)[:, i] for step in range(future)]
        rows.append(torch.stack(there).mean(0))
    queries = torch.stack(rows, dim=1)  # (query_heads, n - 4, d)
    group = queries.shape[0] // keys.shape[0]
    scores = []
    for kv in range(keys.shape[0]):
        attention = []
        for head in range(kv * group, (kv + 1) * group):
            mu = queries[head].mean(0)
            centred = queries[head] - mu
            sigma = centred.T @ centred / len(centred)
            z = [scaling * k @ mu + scaling**2 / 2 * k @ sigma @ k for k in keys[kv, SINKS:]]
            attention.append(torch.softmax(torch.stack(z), 0))
        scores.append(torch.stack(attention).mean(0) * values[kv, SINKS:].norm(dim=-1))
    return torch.stack(scores)


def logits_after_closing_gaps(moved: Moved, kept: Tensor, continuation: Tensor, group: int) -> Tensor:
    """Logits (m, vocabulary) of a continuation whose cache holds the kept tokens (k,) right before it, gaps closed."""
    n = len(moved.tokens)
    cache = DynamicCache(config=text_config(moved.model.config))
    with torch.no_grad():
        run(moved.model, moved.tokens[None], cache)
        for index, layer in enumerate(cache.layers):
            columns = []
            for rank, token in enumerate(kept.tolist()):
                by = n - len(kept) + rank - token
                columns.append(moved.keys(index, by, group)[:, token])
            layer.keys = torch.stack(columns, dim=1)[None]
            layer.values = layer.values[:, :, kept]
        positions = torch.arange(n, n + len(continuation))[None]
        return run(moved.model, continuation[None], cache, position_ids=positions).logits[0]
