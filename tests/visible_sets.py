"""The judge of compressed generation: one full pass in which every query's visible set is written out."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

#: Tokens of the prompt, and generated ones, unless asked otherwise.
PROMPT, NEW = 70, 46

_state: dict[str, Any] = {"visible": {}, "seen": None}


@dataclass
class Pass:
    """What a full pass showed.

    Attributes:
        logits: (n, vocabulary).
        hidden: layer -> (n, hidden), outputs of the decoder layers.
        queries, keys: layer -> (heads, n, d).
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)


def _naive(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: Any = None, **_: Any
) -> tuple[Tensor, None]:
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    layer = module.layer_idx
    _state["seen"].queries[layer], _state["seen"].keys[layer] = query[0], key[0]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if attention_mask is not None:
        allowed = allowed & attention_mask[0, 0]
    out = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    for head in range(query.shape[1]):
        visible = allowed
        if layer in _state["visible"]:
            visible = visible & _state["visible"][layer][head // group]
        logits = query[0, head] @ key[0, head // group].T * scaling
        out[0, head] = torch.softmax(logits.masked_fill(~visible, float("-inf")), -1) @ value[0, head // group]
    return out.transpose(1, 2), None


def full_pass(model: PreTrainedModel, tokens: Tensor, visible: dict[int, Tensor] | None = None) -> Pass:
    """All tokens (n,) at once.

    Args:
        visible: layer -> (kv_heads, n, n) bool, on top of the model's own mask.
    """
    AttentionInterface.register("visible_sets_reference", _naive)
    AttentionMaskInterface.register("visible_sets_reference", sdpa_mask)
    before, seen = model.config._attn_implementation, Pass()
    model.set_attn_implementation("visible_sets_reference")
    _state.update(visible=visible or {}, seen=seen)
    layers = (getattr(model, "model", None) or model.gpt_neox).layers
    handles = [
        layer.register_forward_hook(
            lambda m, a, o, i=i: seen.hidden.__setitem__(i, (o[0] if isinstance(o, tuple) else o)[0])
        )
        for i, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            seen.logits = model(tokens[None], use_cache=False).logits[0]
    finally:
        _state.update(visible={}, seen=None)
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    return seen


@dataclass
class Snapshots:
    """After each forward pass: tokens seen, and layer -> positions held by each kv head; and its last logits.

    `generate` itself gives logits in float32 only.
    """

    steps: list[tuple[int, dict[int, list[list[int]]]]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def visible(self, n: int, heads: int) -> dict[int, Tensor]:
        """Layer -> (kv_heads, n, n) bool: a query sees what was held before its pass, and its own pass causally."""
        layers = self.steps[0][1]
        found = {layer: torch.zeros(heads, n, n, dtype=torch.bool) for layer in layers}
        begun: dict[int, list[list[int]]] = {layer: [[] for _ in range(heads)] for layer in layers}
        start = 0
        for seen, after in self.steps:
            for layer, mask in found.items():
                for head in range(heads):
                    mask[head, start:seen, begun[layer][head]] = True
                    mask[head, start:seen, start:seen] = True
            begun, start = after, seen
        return found


@contextmanager
def watching(model: PreTrainedModel, cache: Any) -> Any:
    """Snapshots of a compressed cache; enter it inside the `compress` block, so that its hook comes after."""
    found = Snapshots()

    def note(module: Any, inputs: Any, output: Any) -> None:
        held = {}
        for layer in cache.full_layers():
            rows = cache.layers[layer].positions().tolist()
            held[layer] = [[p for p in row if p >= 0] for row in rows]
        if found.steps and found.steps[-1][0] == cache.get_seq_length():  # a head replayed through the whole model
            found.steps.pop(), found.logits.pop()
        found.steps.append((cache.get_seq_length(), held))
        found.logits.append(output.logits[0, -1])

    handle = model.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def prompt(n: int = PROMPT, seed: int = 1) -> Tensor:
    return torch.randint(3, 97, (1, n), generator=torch.Generator().manual_seed(seed))


def settings(n: int = PROMPT, new: int = NEW) -> dict[str, Any]:
    mask = torch.ones(1, n, dtype=torch.int64)
    return {"attention_mask": mask, "max_new_tokens": new, "min_new_tokens": new, "do_sample": False}


def generated(
    model: PreTrainedModel, cache: Any, n: int = PROMPT, new: int = NEW, **changes: Any
) -> tuple[Tensor, Tensor, Snapshots]:
    """(tokens, logits of each step, snapshots)."""
    with watching(model, cache) as snapshots:
        tokens = model.generate(prompt(n), past_key_values=cache, **{**settings(n, new), **changes})[0]
    return tokens, torch.stack(snapshots.logits), snapshots
