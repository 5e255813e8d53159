"""What a model is made of, found out by running it on a few tokens, not from its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, layer_windows, text_config
from forward_influence.instrument.compat import CACHE_TOO_SHORT, STATES_FROM, carries_states, lacks_layers
from forward_influence.instrument.given import uncompiled
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.layer_kinds import KNOWN_KINDS, REPLAYABLE_KINDS, SharingLayer, holds_entries
from forward_influence.instrument.lm_head import Head, find_head
from forward_influence.instrument.positions import positions_of
from forward_influence.instrument.probes import (
    PROBE,
    check_lengths,
    check_own_masks,
    check_removal,
    find_steps,
    instrumented_logits,
    kind_and_line,
    nearest_native,
    probe_tokens,
    same_logits,
)
from forward_influence.instrument.steps import Steps, remember
from forward_influence.utils.closeness import largest_difference


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that measuring needs.

    Attributes:
        layers: decoder layers, those that hold no entries among them.
        windows: per layer, its sliding window or chunk in tokens; None for full attention, 0 where it holds no entries
            of single tokens (it carries states, reads another layer's entries, or does not attend).
        query_heads, kv_heads, head_size: of the full layers. Where they hold one latent per token, from which the keys
            of all query heads are made, there is one kv head.
        entry_size: numbers that a full layer's cache holds per token, of all its kv heads.
        hidden, vocabulary: sizes.
        positions: how many positions the model was made for; None where it does not say.
        decoder_layers: layer index -> the module whose output is the residual stream after that layer.
        head: last hidden states -> logits.
        unlike: layers, with a window, that have other numbers of heads than the full ones.
        kinds: per layer, what transformers' cache calls it.
        latent: full layers that hold a latent per token -> the attention module that makes keys and values of it.
        steps: how tokens may follow a cache.
    """

    layers: int
    windows: tuple[int | None, ...]
    query_heads: int
    kv_heads: int
    head_size: int
    entry_size: int
    hidden: int
    vocabulary: int
    positions: int | None
    decoder_layers: dict[int, nn.Module] = field(repr=False)
    head: Head = field(repr=False)
    unlike: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    latent: dict[int, nn.Module] = field(default_factory=dict, repr=False)
    steps: Steps = field(default_factory=Steps)

    @property
    def replayable(self) -> bool:
        """Whether keys and values decide all that a token gives, so that tokens can run again over those kept."""
        return replayable(self.kinds)

    @property
    def stateful(self) -> bool:
        """Whether layers carry states, in which what is removed may live on."""
        return any(kind.startswith("LinearAttention") for kind in self.kinds)

    def full_layers(self, span: int) -> tuple[int, ...]:
        """The layers that see everything in a sequence of `span` tokens: no window, or one that covers it.

        Raises:
            UsageError: they have different numbers of heads.
        """
        return full_layers(self.windows, self.unlike, span)


def replayable(kinds: Collection[str]) -> bool:
    """`Anatomy.replayable` of a model whose cache has layers of these kinds."""
    return set(kinds) <= set(REPLAYABLE_KINDS)


def full_layers(windows: Sequence[int | None], unlike: Sequence[int], span: int) -> tuple[int, ...]:
    """`Anatomy.full_layers` of a model that is described elsewhere."""
    full = tuple(i for i, w in enumerate(windows) if w is None or w >= span)
    if set(full) & set(unlike) and not set(full) <= set(unlike):
        raise UsageError(
            f"at {span} tokens the windowed layers see everything too, and they have other numbers of heads; "
            "ask for more `context` or `continuation`"
        )
    return full


class _Probe:
    """Notes the shapes that pass, and the keys that came last."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int, int]] = {}
        self.calls: dict[int, int] = {}
        self.keys: dict[int, Tensor] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        self.shapes[layer] = (query.shape[1], key.shape[1], query.shape[3])
        self.calls[layer] = self.calls.get(layer, 0) + 1
        self.keys[layer] = key

    def hidden(self, layer: int, states: Tensor) -> None: ...


def examine(model: PreTrainedModel) -> Anatomy:
    """Run a few tokens through a causal LM, natively and instrumented, and say what it is made of.

    Raises:
        UsageError: the model cannot be measured; the reason is in the message.
    """
    name = type(model).__name__
    config = text_config(model.config)
    kinds = refuse_unfit_caches(name, config)
    vocabulary = int(config.vocab_size)
    device = next(model.parameters()).device
    tokens = probe_tokens(config, vocabulary).to(device)[None]
    with torch.no_grad(), uncompiled():
        steps, lengths, native = find_steps(model, tokens, any(kind.startswith("LinearAttention") for kind in kinds))
        remember([model, backbone(model)], steps)
        probe = _Probe()
        try:
            with Instrument(model, recorder=probe, span=sum(PROBE)) as instrument:
                cache = SelectiveCache(model.config)
                logits, hidden = instrumented_logits(model, tokens, instrument, cache, lengths)
        except ForwardInfluenceError as error:
            raise UsageError(f"{name}: {error}") from error
        except CACHE_TOO_SHORT as error:
            raise UsageError(f"{name} has more attending layers than its cache has, which is not supported") from error
        except AttributeError as error:
            raise UsageError(f"{name} keeps more in its cache than is known here ({kind_and_line(error)})") from error
        latent = _latent(model, probe, cache)
        layers = _check_probe(name, probe, cache, latent, len(lengths))
        native = nearest_native(model, tokens, lengths, steps, native, logits)
        difference = largest_difference(native, logits)
        if not same_logits(native, logits):
            raise UsageError(
                f"{name}: instrumented logits differ from the model's own by {difference:.2g}, so that it is refused; "
                "its attention does something that the attention interface does not show"
            )
        check_own_masks(model, tokens, native, lengths)
        check_lengths(model, tokens)
        check_removal(model, tokens, lengths, difference)
        head = find_head(model, hidden, logits)
    windows = tuple(layer_windows(config))
    first = next((i for i in layers if windows[i] is None), layers[0])
    query_heads, kv_heads, head_size = probe.shapes[first]
    unlike = tuple(i for i in layers if probe.shapes[i][:2] != (query_heads, kv_heads))
    if any(windows[i] is None for i in unlike):
        raise UsageError(f"{name} has different numbers of heads in different layers, which is not supported")
    return Anatomy(
        layers=len(cache.layers),
        windows=windows,
        query_heads=query_heads,
        kv_heads=1 if latent else kv_heads,
        head_size=head_size,
        entry_size=_entry_size(cache.layers[first]),
        hidden=hidden.shape[-1],
        vocabulary=vocabulary,
        positions=positions_of(config),
        decoder_layers=_decoder_layers(model, len(cache.layers)),
        head=head,
        unlike=unlike,
        kinds=kinds,
        latent=latent,
        steps=steps,
    )


def refuse_unfit_caches(name: str, config: object) -> tuple[str, ...]:
    """Refuse what no single tokens can be removed from, as far as a decoder's configuration shows it.

    Returns:
        What transformers calls the layers of its cache.

    Raises:
        UsageError: an encoder-decoder model, one without an attention layer, or a cache of an unknown kind.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{name} is an encoder-decoder model; a decoder-only language model is needed")
    try:
        layers = DynamicCache(config=config).layers  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{name}: transformers makes no cache for it ({kind_and_line(error)})") from error
    kinds = tuple(type(layer).__name__ for layer in layers)
    if not any(holds_entries(layer) for layer in layers):
        raise UsageError(
            f"{name} has no attention layer: 0 of {len(layers)} layers hold entries, and a state that all tokens share "
            "has none that could be removed"
        )
    if lacks_layers(config, layers) or not (carries_states() or replayable(kinds)):
        raise UsageError(
            f"{name} has layers that carry states, hold latents or share another layer's cache; that needs "
            f"transformers {STATES_FROM} or newer"
        )
    for kind in kinds:
        if kind not in KNOWN_KINDS:
            raise UsageError(f"{name} keeps its cache in {kind}, which is not supported (keys and values are needed)")
    return kinds


def _latent(model: PreTrainedModel, probe: _Probe, cache: SelectiveCache) -> dict[int, nn.Module]:
    """The attention modules of layers that hold one latent per token: what they make of it is what they attend to."""
    found = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if not callable(getattr(module, "expand_kv", None)) or index not in probe.keys:
            continue
        layer = cache.layers[index]
        expanded, _ = module.expand_kv(layer.keys, layer.values)
        if layer.keys.shape[1] == 1 and torch.equal(expanded, probe.keys[index]):
            found[index] = module
    return found


def _check_probe(
    name: str, probe: _Probe, cache: SelectiveCache, latent: Mapping[int, nn.Module], passes: int
) -> list[int]:
    """The layers that hold entries; all of them must have been seen, as often as there were passes."""
    layers = sorted(probe.shapes)
    if not layers:
        raise UsageError(f"{name} does not go through transformers' attention interface, so that nothing can be seen")
    expected = [i for i, layer in enumerate(cache.layers) if holds_entries(layer)]
    others = [i for i in layers if i not in expected and not isinstance(cache.layers[i], SharingLayer)]
    if others or not set(expected) <= set(layers):
        seen = len(set(layers) & set(expected))
        raise UsageError(f"{name}: only {seen} of its {len(expected)} layers go through the attention interface")
    if any(count != passes for count in probe.calls.values()):
        raise UsageError(f"{name} attends more than once per layer (cross-attention?), which is not supported")
    full = cache.full_layers()
    for i in full:
        keys = cache.layers[i].keys
        if i not in latent and (keys is None or keys.shape[1::2] != probe.shapes[i][1:]):
            raise UsageError(
                f"{name} does not attend with the keys that its cache holds (heads shared by experts?), so that no "
                "entry has a score of its own; this is not supported"
            )
    if latent and not set(full) <= set(latent):
        raise UsageError(f"{name} holds latents in some layers and keys in others, which is not supported")
    return expected


def _entry_size(layer: Any) -> int:
    """Numbers per token in one layer of a cache that has seen some."""
    return sum(held.shape[1] * held.shape[3] for held in (layer.keys, layer.values))


def _decoder_layers(model: PreTrainedModel, count: int) -> dict[int, nn.Module]:
    """The decoder layers: the items of the one list of modules that hold what has a layer_idx."""
    found: dict[int, nn.Module] = {}
    for path, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or index in found:
            continue
        match = re.match(r"(.*?\.\d+)(\.|$)", path)
        if match:
            found[index] = model.get_submodule(match.group(1))
    if not set(range(count)) <= set(found):
        raise UsageError(f"{type(model).__name__}: its decoder layers could not be told apart")
    return found
