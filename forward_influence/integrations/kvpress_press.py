"""InfoKV as a press: runs inside kvpress's own pipeline and presses (needs the extra `kvpress`).

    from forward_influence.integrations.kvpress_press import InfoKVPress
    pipe = transformers.pipeline("kv-press-text-generation", model=...)
    pipe(context, question=question, press=InfoKVPress(compression_ratio=0.6))

Entropy and representation change are known only when the model has read the whole context, so that the press
compresses all layers at the end of the pass instead of each layer after its own attention.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, QuantizedCache

from forward_influence.errors import UsageError
from forward_influence.selectors.information import infokv, information_of
from forward_influence.selectors.kvpress_rule import load_kvpress, rotary_embeddings_restored
from forward_influence.selectors.window import POOLINGS, REDUCTIONS, pooled, reduced
from forward_influence.tracing.signals.entropy import ALIGNMENTS, DEFAULT_TOP_K, of_own_token
from forward_influence.tracing.signals.representation_change import change_of
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.utils.numerics import at_least_float32, entropy

_kvpress = load_kvpress()
_HEAD_ROWS = 64


@dataclass
class InfoKVPress(_kvpress.BasePress):  # type: ignore[misc,name-defined]
    """InfoKV (arXiv:2606.26875): window attention mixed with entropy times representation change.

    Everything before the observation window is a candidate; the window is kept and counted, as in SnapKVPress.

    Attributes:
        compression_ratio: fraction of the context that is removed from every layer and head.
        alpha: weight of attention; 1 is attention alone.
        tau: added to the representation change.
        top_k: logits that the entropy is over; 0 for the whole vocabulary.
        alignment: whose entropy, as in the rule `entropy`: "own" or "next".
        window_size, kernel_size: as in SnapKVPress.
        pooling, group: as in the rule `attention`.
        scores: after a pass, layer index -> (kv_heads, tokens).
    """

    compression_ratio: float = 0.0
    alpha: float = 0.9
    tau: float = 1.0
    top_k: int = DEFAULT_TOP_K
    alignment: str = "own"
    window_size: int = DEFAULT_WINDOW
    kernel_size: int = 5
    pooling: str = "average"
    group: str = "mean"
    scores: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.compression_ratio < 1 or not 0 <= self.alpha <= 1:
            raise UsageError("InfoKVPress: compression_ratio lies in [0, 1), alpha in [0, 1]")
        if self.pooling not in POOLINGS or self.group not in REDUCTIONS:
            raise UsageError(f"InfoKVPress: pooling is one of {POOLINGS}, group one of {REDUCTIONS}")
        if self.alignment not in ALIGNMENTS:
            raise UsageError(f"InfoKVPress: alignment={self.alignment} is unknown; it is {' or '.join(ALIGNMENTS)}")

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Generator[None, None, None]:
        """Hooks that read while the model reads the context, and compress its cache when it has."""
        with rotary_embeddings_restored(model):
            body = getattr(model.model, "language_model", model.model)
            reading = _Reading(self, model)
            handles = [body.register_forward_hook(reading.finish, with_kwargs=True)]
            for index, layer in enumerate(body.layers):
                layer.self_attn.rotary_emb = body.rotary_emb
                if getattr(layer.self_attn, "is_sliding", False):
                    continue  # holds its window only; kvpress leaves those of Gemma 3 alone too
                handles.append(layer.self_attn.register_forward_hook(reading.attention, with_kwargs=True))
                handles.append(layer.register_forward_hook(reading.output(index)))
            handles.append(body.layers[-1].register_forward_hook(reading.output(len(body.layers) - 1)))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()


class _Reading:
    """What one pass over a context has shown so far."""

    def __init__(self, press: InfoKVPress, model: PreTrainedModel) -> None:
        self.press, self.model = press, model
        self._attention: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    def attention(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        """SnapKV's score of a layer, (kv_heads, n - window), from kvpress's own window attention."""
        hidden, layer = named["hidden_states"], int(module.layer_idx)  # type: ignore[arg-type]
        if not _is_prefill(named, hidden):
            return
        window = self.press.window_size
        if hidden.shape[1] <= window:
            raise UsageError(f"InfoKVPress: {hidden.shape[1]} tokens are no more than the window of {window}")
        keys, _ = _kvpress.utils.extract_keys_and_values(named["past_key_values"], layer)
        weights = _kvpress.SnapKVPress.compute_window_attention(
            module, hidden, keys, window, named["position_embeddings"]
        )
        mean = at_least_float32(weights)[0].mean(1).reshape(keys.shape[1], -1, keys.shape[2] - window)
        self._attention[layer] = reduced(pooled(mean, self.press.kernel_size, self.press.pooling), self.press.group)

    def output(self, index: int) -> Any:
        """A hook that keeps a decoder layer's output."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[index] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    def finish(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        """Score every layer and compress the cache."""
        if not self._attention:
            return
        press, window = self.press, self.press.window_size
        last = self._outputs[max(self._outputs)]
        head: Any = self.model.get_output_embeddings()
        states = output.last_hidden_state[0]
        entropies = torch.cat(
            [entropy(_logits(self.model, head, rows), press.top_k) for rows in states.split(_HEAD_ROWS)]
        )
        if press.alignment == "own":
            entropies = of_own_token(entropies)
        layers = tuple(self._attention)
        changes = change_of([self._outputs[layer] for layer in layers], last, layers, max(self._outputs))
        for (layer, attended), change in zip(self._attention.items(), changes, strict=True):
            found = information_of(change, entropies, press.tau)[:-window]
            scores = infokv(attended, found, torch.ones_like(found, dtype=torch.bool), press.alpha)
            press.scores[layer] = F.pad(scores, (0, window), value=float(scores.max()) + 1)
            if press.compression_ratio > 0:
                _compress(output.past_key_values, layer, press.scores[layer], press.compression_ratio)
        self._attention.clear()
        self._outputs.clear()


def _is_prefill(named: dict[str, Any], hidden: Tensor) -> bool:
    return bool(named["cache_position"][-1] + 1 == hidden.shape[1])


def _logits(model: PreTrainedModel, head: Any, rows: Tensor) -> Tensor:
    """Logits as the model gives them: scaled or capped where its configuration says so."""
    logits = at_least_float32(head(rows))
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _compress(cache: Any, layer: int, scores: Tensor, ratio: float) -> None:
    """Keep the best of a cache's layer, in kvpress's manner: by score, the same number for each head."""
    if isinstance(cache, QuantizedCache):
        raise UsageError("InfoKVPress does not work on a quantized cache; use a DynamicCache")
    held = cache.layers[layer]
    kept = max(1, int(held.keys.shape[2] * (1 - ratio) + 1e-9))
    index = scores.sort(dim=-1, descending=True, stable=True).indices[:, :kept].sort(dim=-1).values
    for name in ("keys", "values"):
        stored = getattr(held, name)
        where = index[None, :, :, None].expand(1, -1, -1, stored.shape[-1])
        setattr(held, name, stored.gather(2, where).contiguous())
