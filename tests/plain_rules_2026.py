"""Second, plain implementations of the rules of 2025 and 2026, on the naive pass of `plain_rules`."""

from __future__ import annotations

import math

import torch
from plain_rules import Seen, _pool, rotation_matrix, seen_of, snapkv
from torch import Tensor


def key(s: Seen, layer: int, kv: int) -> Tensor:
    """(n, d) keys after the rotary embedding."""
    return s.keys[layer][s.group(kv)[0]]


def projection(s: Seen, layer: int, head: int) -> Tensor:
    """(d, hidden): the part of the output projection that a query head's output goes through."""
    weight = s.model.model.layers[layer].self_attn.o_proj.weight
    size = s.values[layer].shape[-1]
    return weight[:, head * size : (head + 1) * size].T


def caote(s: Seen, layer: int, kv: int, window: int, kernel: int) -> Tensor:
    """The squared distance that each query's output moves without a token, computed by leaving the token out."""
    n, values = len(s.tokens), s.values[layer][kv]
    total = torch.zeros(n, dtype=values.dtype)
    for head in s.group(kv):
        for i in range(n - window, n):
            p = s.weights[layer][head][i]
            output = p @ values
            for j in range(i + 1):
                without = p.clone()
                without[j] = 0
                # what is left is divided by 1 - p_j; a sink without a value keeps its part of the rest
                moved = (without @ values) / (1 - p[j]) - output
                total[j] += (moved**2).sum() * ((1 - p[j]) / (1 - p[j] + 1e-6)) ** 2
    mean = _pool(total / len(s.group(kv)), kernel, "average")
    mean[n - window :] = 0
    return mean


def cur(s: Seen, layer: int, kv: int, window: int, kind: str) -> Tensor:
    """Shares of squared norms within windows of neighbours."""
    k, v = ((x**2).sum(-1) for x in (key(s, layer, kv), s.values[layer][kv]))
    shares = []
    for norms in (k, v):
        found = norms.clone()
        for start in range(0, len(norms), window or len(norms) + 1):
            if window:
                found[start : start + window] = norms[start : start + window] / norms[start : start + window].sum()
        shares.append(found)
    score = {"product": shares[0] * shares[1], "mean": sum(shares) / 2, "key": shares[0], "value": shares[1]}[kind]
    score = score / score.sum()
    score[:4] = 1
    return score


def lagkv(s: Seen, layer: int, kv: int, sinks: int, lag: int) -> Tensor:
    """Partition by partition, channel by channel."""
    n = len(s.tokens)
    parts = (n - sinks) // lag
    score = torch.ones(n, dtype=torch.float64)
    for part in range(parts - 1):
        here = slice(sinks + part * lag, sinks + (part + 1) * lag)
        after = slice(here.stop, here.stop + lag)
        spread = torch.zeros(lag, dtype=torch.float64)
        for states in (key(s, layer, kv), s.values[layer][kv]):
            low, high = states[after].min(0).values, states[after].max(0).values
            deviations = torch.stack([((row - low) / (high - low)).std() for row in states[here]])
            spread += deviations.exp() / deviations.exp().sum() / 2
        for i in range(lag):
            score[here.start + i] = int((spread < spread[i]).sum()) / lag
    return score


def future_mean(s: Seen, layer: int, head: int, positions: list[int]) -> Tensor:
    """The mean query of tokens from the 5th on, turned by the mean rotation at some positions."""
    rotation = sum(rotation_matrix(s, p, layer) for p in positions) / len(positions)
    return rotation @ s.plain_queries[layer][head][4:].mean(0)


def capkv(s: Seen, layer: int, kv: int, tau: float, future: int) -> Tensor:
    """w v^T A^-1 v of tokens from the 5th on."""
    n, keys, values = len(s.tokens), key(s, layer, kv)[4:], s.values[layer][kv][4:]
    rows = []
    for head in s.group(kv):
        anchor = future_mean(s, layer, head, list(range(n, n + future)))
        cosines = torch.stack([k @ anchor / k.norm() / anchor.norm() for k in keys])
        w = torch.exp(tau * cosines - tau * cosines.max())
        a = torch.eye(values.shape[1], dtype=values.dtype)
        for weight, v in zip(w, values, strict=True):
            a = a + (weight + 1e-6) * torch.outer(v, v)
        inverse = torch.linalg.inv(a)
        rows.append(torch.stack([weight * v @ inverse @ v for weight, v in zip(w, values, strict=True)]))
    return sum(rows) / len(rows)


def q_filter(s: Seen, layer: int, kv: int) -> Tensor:
    """By a singular value decomposition of the queries themselves."""
    directions = []
    for head in s.group(kv):
        queries = s.queries[layer][head][4:]
        right = torch.linalg.svd(queries).Vh[0]
        directions.append(right if float((queries @ right).mean()) > 0 else -right)
    return key(s, layer, kv) @ (sum(directions) / len(directions))


def triattention(s: Seen, layer: int, kv: int, furthest: int, candidates: list[int]) -> Tensor:
    """Complex numbers, frequency by frequency: |E q| |k| cos(w D + phi) and the excess of lengths."""
    n, keys = len(s.tokens), key(s, layer, kv)
    half = keys.shape[1] // 2
    first = rotation_matrix(s, 1, layer)
    scale = float((first[0, 0] ** 2 + first[half, 0] ** 2).sqrt())
    angle = [math.atan2(float(first[i + half, i]), float(first[i, i])) for i in range(half)]
    rows = []
    for head in s.group(kv):
        queries = torch.complex(*s.plain_queries[layer][head][4:].split(half, -1))
        row = torch.zeros(n, dtype=torch.float64)
        for j in range(n):
            plain = torch.linalg.inv(rotation_matrix(s, j, layer)) @ keys[j]
            k = torch.complex(plain[:half], plain[half:])
            for f in range(half):
                mean = queries[:, f].mean()
                excess = queries[:, f].abs().mean() - mean.abs()
                phase = math.atan2(float((mean * k[f].conj()).imag), float((mean * k[f].conj()).real))
                distances = [n - j + (1 << i) for i in range(furthest.bit_length())]
                waves = sum(math.cos(angle[f] * d + phase) for d in distances) / len(distances)
                row[j] += scale**2 * k[f].abs() * (mean.abs() * waves + excess)
        inside = row[candidates]
        rows.append((row - inside.mean()) / ((inside - inside.mean()) ** 2).mean().sqrt())
    return torch.stack(rows).max(0).values


def compactor(s: Seen, layer: int, chunk: int, blend: float, scaling: float, sinks: Tensor | None) -> Tensor:
    """(kv_heads, n) of a layer: leverage of keys before they turn, attention of chunks, both standardised."""
    n, kv_heads = len(s.tokens), s.heads[1]
    inside = list(range(8, n - 4))
    leverages, attentions = [], []
    for kv in range(kv_heads):
        plain = torch.stack([torch.linalg.inv(rotation_matrix(s, j, layer)) @ key(s, layer, kv)[j] for j in inside])
        centred = plain - plain.mean(0)
        inverse = torch.linalg.inv(centred.T @ centred + 0.01 * torch.eye(plain.shape[1], dtype=plain.dtype))
        leverages.append(torch.stack([k @ inverse @ k for k in centred]))
        received = torch.zeros(len(inside), dtype=plain.dtype)
        for start in range(0, len(inside), chunk):
            members = inside[start : start + chunk]
            for head in s.group(kv):
                logits = s.queries[layer][head][members] @ key(s, layer, kv)[members].T * scaling
                weights = logits.exp()
                rest = 0 if sinks is None else sinks[head].exp()
                weights = weights / (weights.sum(-1, keepdim=True) + rest)
                received[start : start + len(members)] += weights.sum(0) / len(s.group(kv))
        attentions.append(_pool(received * s.values[layer][kv][inside].norm(dim=-1), 3, "average"))
    blended = 0
    for weight, parts in ((blend, leverages), (1, attentions)):
        of_layer = torch.stack(parts)
        blended = blended + weight * (of_layer - of_layer.mean()) / of_layer.std()
    score = torch.full((kv_heads, n), float(blended.max()), dtype=torch.float64)
    score[:, inside] = blended
    return score


def lazy_eviction(s: Seen, layer: int, kv: int, alpha: float) -> Tensor:
    """Step by step through the attention weights."""
    n = len(s.tokens)
    last, longest = list(range(n)), [0] * n
    for t in range(n):
        for j in range(t + 1):
            if any(float(s.weights[layer][head][t, j]) >= alpha for head in s.group(kv)):
                longest[j] = max(longest[j], t - last[j])
                last[j] = t
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    return torch.tensor(
        [
            2 * logistic(-(n - 1 - t) / m) + 2 * logistic(-1 / m) if m else 0.0
            for t, m in zip(last, longest, strict=True)
        ],
        dtype=torch.float64,
    )


def value_norms(s: Seen, layer: int, kv: int, order: int) -> Tensor:
    """||W_O v||, mean over the group."""
    rows = [(s.values[layer][kv] @ projection(s, layer, head)).norm(p=order, dim=-1) for head in s.group(kv)]
    return sum(rows) / len(rows)


def two_stages(first: Tensor, second: Tensor, number: int, share: float, candidates: list[int]) -> set[int]:
    """The share of a number by one score, then the rest by the other, among the candidates."""
    taken = sorted(candidates, key=lambda j: (-float(first[j]), j))[: int(share * number + 1e-9)]
    rest = sorted((j for j in candidates if j not in taken), key=lambda j: (-float(second[j]), j))
    return {*taken, *rest[: number - len(taken)]}


def criticalkv(s: Seen, layer: int, kv: int, number: int, candidates: list[int]) -> set[int]:
    """Half by attention of a window of 8, half by what that weighs in the residual stream."""
    base = snapkv(s, layer, kv)
    return two_stages(base, (base + 1e-4) * value_norms(s, layer, kv, 1), number, 0.5, candidates)


def chunkkv(s: Seen, layer: int, base: list[Tensor], length: int, candidates: list[int]) -> Tensor:
    """(n,): the mean of a chunk's candidates, summed over heads."""
    score = torch.zeros(len(s.tokens), dtype=torch.float64)
    for start in range(0, len(s.tokens), length):
        members = [j for j in range(start, start + length) if j in candidates]
        if members:
            score[members] = sum(of_head[members].double().mean() for of_head in base)
    return score


def kvzip(
    s: Seen,
    layer: int,
    kv: int,
    piece: int,
    requests: list[list[int]],
    scaling: float,
    sinks: Tensor | None,
    plus: bool,
) -> Tensor:
    """Each piece from one naive pass over context, request and piece, its softmax written out."""
    n = len(s.tokens)
    score = torch.zeros(n, dtype=torch.float64)
    for number, start in enumerate(range(0, n, piece)):
        end, request = min(n, start + piece), torch.tensor(requests[min(number, len(requests) - 1)], dtype=torch.int64)
        if number and len(request):  # a later request quotes the eight tokens before its piece
            at = int((request == -1).nonzero()[0])
            request = torch.cat([request[:at], s.tokens[start - 8 : start], request[at + 1 :]])
        whole = torch.cat([s.tokens, request, s.tokens[start:end]])
        inputs: list[Tensor] = []
        attention = s.model.model.layers[layer].self_attn
        handle = attention.register_forward_pre_hook(
            lambda m, a, k, inputs=inputs: inputs.append((a[0] if a else k["hidden_states"])[0]), with_kwargs=True
        )
        again = seen_of(s.model, whole)
        handle.remove()
        columns = [*range(min(4, start)), *range(start, end)]
        for head in s.group(kv):
            norms = (s.values[layer][kv] @ projection(s, layer, head)).norm(dim=-1)
            for t in range(n, len(whole)):
                seen_columns = [*columns, *range(n, t + 1)]
                logits = again.queries[layer][head][t] @ again.keys[layer][head][seen_columns].T * scaling
                weights = logits.exp() / (logits.exp().sum() + (0 if sinks is None else sinks[head].exp()))
                of_piece = weights[min(4, start) : min(4, start) + end - start]
                if plus:
                    of_piece = of_piece * norms[start:end] / inputs[0][t].norm()
                score[start:end] = torch.maximum(score[start:end], of_piece)
    return score
