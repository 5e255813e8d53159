"""A second, plain implementation of every rule, from one naive full pass: loops and definitions, nothing shared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import brute_force
import torch
from tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

N = 60


@dataclass
class Seen:
    """What the naive pass over a context saw.

    Attributes:
        weights, queries, keys: layer -> head -> (n, n), (n, d), (n, d); keys by query head.
        plain_queries: layer -> (query_heads, n, d) before the rotary embedding.
        values: layer -> (kv_heads, n, d).
        hidden: (layers + 1) of (n, hidden); the output of each decoder layer from 1 on, before the final norm.
        logits: (n, vocabulary).
    """

    model: PreTrainedModel
    tokens: Tensor
    weights: dict[int, dict[int, Tensor]]
    queries: dict[int, dict[int, Tensor]]
    keys: dict[int, dict[int, Tensor]]
    plain_queries: dict[int, Tensor]
    values: dict[int, Tensor]
    hidden: list[Tensor]
    logits: Tensor

    @property
    def heads(self) -> tuple[int, int]:
        """(query heads, kv heads)."""
        return self.model.config.num_attention_heads, self.model.config.num_key_value_heads

    def group(self, kv: int) -> list[int]:
        """The query heads of a kv head."""
        query_heads, kv_heads = self.heads
        size = query_heads // kv_heads
        return list(range(kv * size, (kv + 1) * size))


@lru_cache(maxsize=8)
def seen(family: str, n: int = N, **changes: Any) -> Seen:
    """The naive pass over `n` random tokens of a tiny model."""
    return seen_of(
        tiny_model(family, **changes), torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(11))
    )


def seen_of(model: PreTrainedModel, tokens: Tensor) -> Seen:
    """The naive pass over tokens (n,)."""
    n = len(tokens)
    plain: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    hidden: dict[int, Tensor] = {}
    handles = []
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        source = getattr(attention, "q_norm", None) or attention.q_proj

        def keep_query(
            module: Any, inputs: Any, output: Tensor, index: int = index, size: int = attention.head_dim
        ) -> None:
            rows = output[0]
            plain[index] = rows.transpose(0, 1) if rows.dim() == 3 else rows.reshape(n, -1, size).transpose(0, 1)
            if plain[index].shape[1] != n:  # normalised after the transpose already
                plain[index] = rows

        def keep_value(
            module: Any, inputs: Any, output: Tensor, index: int = index, size: int = attention.head_dim
        ) -> None:
            values[index] = output[0].reshape(n, -1, size).transpose(0, 1)

        def keep_hidden(module: Any, inputs: Any, output: Any, index: int = index) -> None:
            hidden[index] = (output[0] if isinstance(output, tuple) else output)[0]

        handles += [
            source.register_forward_hook(keep_query),
            attention.v_proj.register_forward_hook(keep_value),
            layer.register_forward_hook(keep_hidden),
        ]
    inputs: dict[int, Any] = {}
    try:
        logits = brute_force.logits_of_full_pass(model, tokens, inputs=inputs).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    pick = [{layer: {h: parts[i] for h, parts in heads.items()} for layer, heads in inputs.items()} for i in range(3)]
    return Seen(model, tokens, *pick, plain, values, [hidden[i] for i in sorted(hidden)], logits)


def _pool(row: Tensor, kernel: int, how: str) -> Tensor:
    half, n = kernel // 2, len(row)
    result = torch.empty_like(row)
    for i in range(n):
        window = [row[j] if 0 <= j < n else None for j in range(i - half, i + half + 1)]
        inside = torch.stack([w for w in window if w is not None])
        result[i] = inside.max() if how == "max" else inside.sum() / kernel
    return result


def snapkv(
    s: Seen, layer: int, kv: int, window: int = 8, kernel: int = 5, pooling: str = "average", group: str = "mean"
) -> Tensor:
    """Pool each query head's mean window attention, then join the group."""
    n = len(s.tokens)
    rows = []
    for head in s.group(kv):
        mean = s.weights[layer][head][n - window :, : n - window].mean(0)
        rows.append(mean if pooling == "none" else _pool(mean, kernel, pooling))
    stacked = torch.stack(rows)
    joined = {"mean": stacked.mean(0), "max": stacked.max(0).values, "sum": stacked.sum(0)}[group]
    return torch.cat([joined, torch.zeros(window, dtype=joined.dtype)])


def h2o(s: Seen, layer: int, kv: int) -> Tensor:
    """Column sums, mean over the group."""
    return sum(s.weights[layer][head].sum(0) for head in s.group(kv)) / len(s.group(kv))


def observed(s: Seen, layer: int, kv: int) -> Tensor:
    """Mean over the queries that could see each token."""
    n = len(s.tokens)
    columns = [torch.stack([s.weights[layer][h][j:, j].mean() for j in range(n)]) for h in s.group(kv)]
    return torch.stack(columns).mean(0)


def tova(s: Seen, layer: int, kv: int) -> Tensor:
    """The last row, mean over all query heads."""
    return torch.stack([w[-1] for w in s.weights[layer].values()]).mean(0)


def entropy(s: Seen, top_k: int, alignment: str = "own") -> Tensor:
    """-sum p log p over the largest logits, one position at a time: of the row before, or of a position's own."""
    result = []
    for i in range(len(s.tokens)):
        row = i - 1 if alignment == "own" else i
        if row < 0:
            result.append(s.logits.new_zeros(()))
            continue
        kept = s.logits[row].sort(descending=True).values[: top_k or s.logits.shape[-1]]
        p = torch.softmax(kept, -1)
        result.append(-(p * p.log()).sum())
    return torch.stack(result)


def surprisal(s: Seen) -> Tensor:
    """0 for the first token; the others from the row before."""
    log_p = s.logits.log_softmax(-1)
    return torch.stack([log_p.new_zeros(())] + [-log_p[i - 1, s.tokens[i]] for i in range(1, len(s.tokens))])


def change(s: Seen, layer: int) -> Tensor:
    """1 - cos of a layer's output with the last layer's."""
    a, b = s.hidden[layer], s.hidden[-1]
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def infokv(
    s: Seen, layer: int, kv: int, candidates: list[int], alpha: float, tau: float, top_k: int, window: int
) -> Tensor:
    """alpha A + (1 - alpha) softmax(E) over the candidates; 0 elsewhere."""
    attention = snapkv(s, layer, kv, window)[candidates]
    information = ((change(s, layer) + tau) * entropy(s, top_k))[candidates]
    result = torch.zeros(len(s.tokens), dtype=attention.dtype)
    result[candidates] = alpha * attention / attention.sum() + (1 - alpha) * torch.softmax(information, 0)
    return result


def knorm(s: Seen, layer: int, kv: int) -> Tensor:
    """Minus the root of the sum of squares."""
    return -s.keys[layer][s.group(kv)[0]].square().sum(-1).sqrt()


def keydiff(s: Seen, layer: int, kv: int) -> Tensor:
    """Minus the cosine with the mean unit key."""
    keys = s.keys[layer][s.group(kv)[0]]
    anchor = torch.stack([k / k.norm() for k in keys]).mean(0)
    return torch.stack([-(k @ anchor) / (k.norm() * anchor.norm()) for k in keys])


def _logits(s: Seen, layer: int, head: int, scaling: float) -> Tensor:
    return s.queries[layer][head] @ s.keys[layer][head].T * scaling


def rpc(s: Seen, layer: int, window: int, kernel: int, scaling: float) -> Tensor:
    """Softmax before the window only, summed over queries, mean over all heads, pooled."""
    n = len(s.tokens)
    rows = [
        torch.softmax(_logits(s, layer, h, scaling)[n - window :, : n - window], -1).sum(0) for h in s.queries[layer]
    ]
    return torch.cat([_pool(torch.stack(rows).mean(0), kernel, "average"), torch.zeros(window, dtype=rows[0].dtype)])


def rkv(
    s: Seen, layer: int, kv: int, window: int, kernel: int, weight: float, threshold: float, scaling: float
) -> Tensor:
    """lambda a - (1 - lambda) redundancy."""
    n = len(s.tokens)
    logits = torch.stack([_logits(s, layer, h, scaling)[n - window :, : n - window] for h in s.group(kv)]).max(0).values
    a = _pool(torch.softmax(logits, -1).mean(0), kernel, "max")
    keys = s.keys[layer][s.group(kv)[0]]
    similar = torch.zeros(n, n, dtype=keys.dtype)
    for i in range(n):
        for j in range(n):
            if i != j:
                similar[i, j] = keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())
        above = [j for j in range(n) if similar[i, j] > threshold]
        if above:
            similar[i, above[-1]] = 0
    redundancy = torch.softmax(similar.mean(0), 0)[: n - window]
    return torch.cat([weight * a - (1 - weight) * redundancy, torch.zeros(window, dtype=a.dtype)])


def rotation_matrix(s: Seen, position: int, layer: int) -> Tensor:
    """The d x d matrix that turns a query before the rotary embedding into one at `position`."""
    extra = []
    if isinstance(getattr(s.model.config, "rope_parameters", None), dict) and "full_attention" in (
        s.model.config.rope_parameters
    ):
        extra = [s.model.config.layer_types[layer]]
    like = torch.zeros(1, dtype=torch.float64)
    cos, sin = s.model.model.rotary_emb(like, torch.tensor([[position]]), *extra)
    size = s.plain_queries[layer].shape[-1]
    half = size // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(half):
        c, d = cos[0, 0, i], sin[0, 0, i]
        matrix[i, i], matrix[i, i + half] = c, -d
        matrix[i + half, i], matrix[i + half, i + half] = d, c
    return matrix


def expected(s: Seen, layer: int, kv: int, future: int, scaling: float) -> Tensor:
    """Expected Attention by its formula, token by token."""
    n, sinks = len(s.tokens), 4
    mean_rotation = sum(rotation_matrix(s, n + p, layer) for p in range(future)) / future
    keys = s.keys[layer][s.group(kv)[0]]
    rows = []
    for head in s.group(kv):
        queries = s.plain_queries[layer][head][4:]
        mu = mean_rotation @ queries.mean(0)
        centred = queries - queries.mean(0)
        sigma = mean_rotation @ (centred.T @ centred / len(queries)) @ mean_rotation.T
        z = torch.stack([scaling * k @ mu + scaling**2 / 2 * k @ sigma @ k for k in keys[sinks:]])
        rows.append(torch.softmax(z, 0))
    return torch.stack(rows).mean(0) * s.values[layer][kv][sinks:].norm(dim=-1)
