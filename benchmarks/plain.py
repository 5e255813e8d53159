"""Forward Influence as one would write it today: per rule a full prefill, and whole logits.

    python benchmarks/plain.py [--context 512] [--continuation 1536]

Rules: attention (the last 64 queries), entropy (top 256), infokv and random, as in the package; nothing of it is used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

WINDOW, SINKS = 64, 4


def scores_of(model: PreTrainedModel, rule: str, context: Tensor) -> tuple[DynamicCache, Tensor]:
    """A prefill, and the rule's scores (layers, kv heads, n - window)."""
    cache = DynamicCache()
    n, config = len(context), model.config
    wants_states = rule == "infokv"
    first = model(context[None, :-WINDOW], past_key_values=cache, output_hidden_states=wants_states)
    model.set_attn_implementation("eager")  # the only one that gives attention weights
    last = model(context[None, -WINDOW:], past_key_values=cache, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    attention = torch.stack([layer[0, :, :, :-WINDOW].mean(1) for layer in last.attentions])  # layers, heads, n - w
    attention = F.avg_pool1d(attention, 5, stride=1, padding=2)
    attention = attention.unflatten(1, (config.num_key_value_heads, -1)).mean(2)
    if rule == "attention":
        return cache, attention
    if rule == "random":
        return cache, torch.rand_like(attention)
    logits = torch.cat([first.logits, last.logits], dim=1)[0].float()
    top = logits.topk(256, dim=-1).values.log_softmax(-1)
    entropy = F.pad(-(top.exp() * top).sum(-1)[:-1], (1, 0))  # of the distribution that predicted each token
    if rule == "entropy":
        return cache, entropy[: n - WINDOW].expand_as(attention)
    states = torch.stack(first.hidden_states[1:])[:, 0].float()
    change = 1 - F.cosine_similarity(states, states[-1:], dim=-1)
    information = (change + 1) * entropy[: n - WINDOW]
    attention = attention / attention[..., SINKS:].sum(-1, keepdim=True)
    return cache, 0.9 * attention + 0.1 * F.pad(information[:, SINKS:].softmax(-1), (SINKS, 0))[:, None]


def plain_influence(
    model: PreTrainedModel, context: Tensor, continuation: Tensor, rules: Sequence[str], budget: float
) -> dict[str, Tensor]:
    """Rule -> KL (m,), by dropping floor(budget x context) tokens per layer and head."""
    n, m = len(context), len(continuation)
    device = model.device
    context, continuation = context.to(device), continuation.to(device)
    positions = torch.arange(n, n + m, device=device)[None]
    found = {}
    with torch.no_grad():
        cache = DynamicCache()
        model(context[None], past_key_values=cache)
        log_p = model(continuation[None], past_key_values=cache).logits[0].float().log_softmax(-1)
        del cache
        for rule in rules:
            cache, scores = scores_of(model, rule, context)
            scores = scores.clone()
            scores[..., :SINKS] = -torch.inf
            drop = scores.topk(int(budget * n + 1e-9), dim=-1).indices
            keep = torch.ones(*scores.shape[:2], n, dtype=torch.bool, device=device).scatter_(2, drop, False)
            for layer, kept in zip(cache.layers, keep, strict=True):
                size = layer.keys.shape[-1]
                layer.keys = layer.keys[0][kept].view(1, len(kept), -1, size)
                layer.values = layer.values[0][kept].view(1, len(kept), -1, size)
            output = model(continuation[None], past_key_values=cache, position_ids=positions)
            log_q = output.logits[0].float().log_softmax(-1)
            found[rule] = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).cpu()
    return found


def main() -> None:
    """Time it on its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--continuation", type=int, default=1536)
    given = parser.parse_args()
    from common import RULES, load

    model, tokens = load("smollm2-135m", "cpu", "float32", given.context + given.continuation)
    started = time.perf_counter()
    found = plain_influence(model.model, tokens[: given.context], tokens[given.context :], RULES, 0.2)
    print(f"{time.perf_counter() - started:.1f} s", {rule: round(float(kl.mean()), 5) for rule, kl in found.items()})


if __name__ == "__main__":
    main()
