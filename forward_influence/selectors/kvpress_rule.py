"""Scores of NVIDIA's kvpress as rules: kvpress:SnapKVPress:window_size=32 (the extra `kvpress`).

kvpress attaches a press to a model with hooks and scores while the model reads the context. A rule does the same: it
wraps the press in one that keeps the scores and compresses nothing, and runs the context once more, whole. The press's
own code computes the scores, from its own reading of queries.

Importing kvpress wraps every attention function of transformers (for its head-wise presses); ours is registered anew
whenever it is used, so that measuring is untouched. Presses find the rotary embedding as an attribute that kvpress
hangs on attention modules; it is taken off again.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, get_args, get_type_hints

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.instrument.compat import KVPRESS_BELOW, attention_implementations
from forward_influence.selectors.base import Selector
from forward_influence.tracing.trace import Trace


def load_kvpress() -> Any:
    """The kvpress package.

    Raises:
        UsageError: it is not installed, or does not fit the installed transformers.
    """
    absent = UsageError(
        f"kvpress is not installed: pip install 'forward-influence[kvpress]' (needs transformers below {KVPRESS_BELOW})"
    )
    try:
        kvpress = importlib.import_module("kvpress")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "kvpress":
            raise absent from error
        text = next(iter(str(error).splitlines()), "")
        raise UsageError(f"kvpress cannot be imported ({text}); it needs transformers below {KVPRESS_BELOW}") from error
    if not hasattr(kvpress, "ScorerPress"):  # some folder of that name
        raise absent
    return kvpress


@dataclass(frozen=True, kw_only=True)
class PressRule(Selector):
    """The scores of a press; subclasses, made by `press_rule`, have the press's parameters as fields.

    Attributes:
        eager: run the pass with transformers' eager attention, which shows presses the attention weights.
    """

    eager: bool = False

    press: ClassVar[type]
    press_fields: ClassVar[tuple[str, ...]] = ()

    def validate(self) -> None:
        """The press accepts its parameters."""
        try:
            self.made()
        except Exception as error:
            text = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UsageError(f"kvpress:{type(self).press.__name__} refuses its parameters: {text}") from error

    def made(self) -> Any:
        """The press itself."""
        return type(self).press(**{name: getattr(self, name) for name in self.press_fields})

    @property
    def needs(self) -> frozenset[str]:
        """The model: a press reads hidden states and attention modules."""
        return frozenset({"model"})

    @property
    def observation_window(self) -> int:
        """The press's `window_size`; presses keep those tokens."""
        return int(getattr(self, "window_size", 0))

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens), from a pass of its own over the whole context.

        Raises:
            UsageError: the layers hold latents, which presses do not know.
        """
        if trace.latent:
            raise UsageError(f"{self.name}: kvpress knows keys and values, and this model's cache holds latents")
        found = press_scores(self.made(), trace.model, trace.tokens, eager=self.eager)
        missing = [layer for layer in trace.layers if layer not in found]
        if missing:
            raise UsageError(f"the press gave no scores for layers {missing}")
        return torch.stack([found[layer] for layer in trace.layers])


@lru_cache(maxsize=64)
def press_rule(name: str) -> type[PressRule]:
    """The rule made of a press of kvpress, by the press's class name.

    Raises:
        UsageError: kvpress is missing, has no such press, or the press scores no tokens or needs other presses.
    """
    kvpress = load_kvpress()
    presses = {n: p for n, p in vars(kvpress).items() if isinstance(p, type) and issubclass(p, kvpress.ScorerPress)}
    presses.pop("ScorerPress", None)
    if name not in presses:
        if isinstance(getattr(kvpress, name, None), type):
            raise UsageError(f"kvpress:{name} scores no tokens (it is no ScorerPress); {_listed(presses)} do")
        raise UsageError(f"kvpress has no press {name!r}{did_you_mean(name, list(presses))}; it has {_listed(presses)}")
    press = presses[name]
    hints = get_type_hints(press)
    fields: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(press):
        if not f.init or not _typable(hints[f.name]):
            continue
        default = f.default
        if default is dataclasses.MISSING and f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        fields.append((f.name, hints[f.name], default if default is dataclasses.MISSING else field(default=default)))
    fields = [(n, t) if d is dataclasses.MISSING else (n, t, d) for n, t, d in fields]  # type: ignore[misc]
    eager = issubclass(press, kvpress.ObservedAttentionPress)
    rule = dataclasses.make_dataclass(
        name,
        [*fields, ("eager", bool, field(default=eager))],
        bases=(PressRule,),
        frozen=True,
        kw_only=True,
        namespace={
            "__doc__": f"{name} of kvpress, by its own code.",
            "press": press,
            "press_fields": tuple(f[0] for f in fields),
            "name": f"kvpress:{name}",
            "source": "kvpress",
        },
    )
    rule.__module__ = __name__
    return rule


def _listed(presses: dict[str, Any]) -> str:
    return ", ".join(sorted(presses))


def _typable(kind: Any) -> bool:
    """Whether a value of this type can be written in a specification."""
    options = [k for k in get_args(kind) if k is not type(None)] or [kind]
    return all(k in (int, float, bool, str) for k in options)


def press_scores(press: Any, model: PreTrainedModel, tokens: Tensor, *, eager: bool = False) -> dict[int, Tensor]:
    """What a press scores on a context, layer index -> (kv_heads, tokens), while the model reads it in one piece.

    Args:
        press: any `kvpress.ScorerPress`.
        tokens: (n,) token ids.
        eager: with transformers' eager attention, which returns attention weights.
    """
    keeper = _keeper()(press)
    before = attention_implementations(model)
    if eager:
        model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), rotary_embeddings_restored(model), keeper(model):
            model.model(input_ids=tokens[None].to(model.device), past_key_values=DynamicCache())
    finally:
        if eager:
            model.set_attn_implementation(before)
    return keeper.kept


def _keeper() -> type:
    """A press that keeps another's scores and compresses nothing."""
    kvpress = load_kvpress()

    class Keeper(kvpress.BasePress):  # type: ignore[misc,name-defined]
        def __init__(self, press: Any) -> None:
            self.press = press
            self.kept: dict[int, Tensor] = {}

        def post_init_from_model(self, model: PreTrainedModel) -> None:
            self.press.post_init_from_model(model)

        def compress(
            self, module: nn.Module, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
            self.kept[int(module.layer_idx)] = scores[0]  # type: ignore[arg-type]
            return keys, values

    return Keeper


@contextmanager
def rotary_embeddings_restored(model: PreTrainedModel) -> Iterator[None]:
    """Take off again the rotary embedding that kvpress hangs on attention modules.

    Raises:
        UsageError: the model is not built the way that kvpress expects.
    """
    body = getattr(model, "model", None)
    body = getattr(body, "language_model", body)
    layers = getattr(body, "layers", None)
    if layers is None or not all(hasattr(layer, "self_attn") for layer in layers):
        raise UsageError(f"kvpress cannot attach to {type(model).__name__}: it has no model.layers with self_attn")
    without = [layer.self_attn for layer in layers if not hasattr(layer.self_attn, "rotary_emb")]
    try:
        yield
    finally:
        for module in without:
            if hasattr(module, "rotary_emb"):
                del module.rotary_emb
