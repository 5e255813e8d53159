"""What a model is made of, found out by running it on a few tokens, not from its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, layer_windows, masked, text_config
from forward_influence.instrument.compat import CACHE_TOO_SHORT, attention_implementations, lacks_layers
from forward_influence.instrument.forward import run
from forward_influence.instrument.given import uncompiled
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.lm_head import Head, find_head
from forward_influence.instrument.positions import positions_of
from forward_influence.instrument.rotary_span import pinned, telling_lengths
from forward_influence.utils.closeness import close, largest_difference

_PROBE = (29, 14)  # tokens in the probe's two chunks


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that measuring needs.

    Attributes:
        layers: attention layers.
        windows: per layer, its sliding window or chunk in tokens; None for full attention.
        query_heads, kv_heads, head_size: of the full layers.
        hidden, vocabulary: sizes.
        positions: how many positions the model was made for; None where it does not say.
        decoder_layers: layer index -> the module whose output is the residual stream after that layer.
        head: last hidden states -> logits.
        unlike: layers, with a window, that have other numbers of heads than the full ones.
    """

    layers: int
    windows: tuple[int | None, ...]
    query_heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    positions: int | None
    decoder_layers: dict[int, nn.Module] = field(repr=False)
    head: Head = field(repr=False)
    unlike: tuple[int, ...] = ()

    def full_layers(self, span: int) -> tuple[int, ...]:
        """The layers that see everything in a sequence of `span` tokens: no window, or one that covers it.

        Raises:
            UsageError: they have different numbers of heads.
        """
        return full_layers(self.windows, self.unlike, span)


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
    """Notes the shapes that pass."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int, int]] = {}
        self.calls: dict[int, int] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        self.shapes[layer] = (query.shape[1], key.shape[1], query.shape[3])
        self.calls[layer] = self.calls.get(layer, 0) + 1

    def hidden(self, layer: int, states: Tensor) -> None: ...


def examine(model: PreTrainedModel) -> Anatomy:
    """Run a few tokens through a causal LM, natively and instrumented, and say what it is made of.

    Raises:
        UsageError: the model cannot be measured; the reason is in the message.
    """
    name = type(model).__name__
    config = text_config(model.config)
    refuse_unfit_caches(name, config)
    vocabulary = int(config.vocab_size)
    device = next(model.parameters()).device
    tokens = _probe_tokens(config, vocabulary).to(device)[None]
    with torch.no_grad(), uncompiled():
        whole, native = _native_logits(model, tokens, sum(_PROBE)), _native_logits(model, tokens, _PROBE)
        if not _close(whole, native):
            raise UsageError(
                f"{name}: its logits depend on how a text is cut into chunks: its tokens see the future, or it "
                "does not carry the past in a cache of keys and values"
            )
        backbone(model)  # found now, for it takes a pass that the probe must not count
        probe = _Probe()
        try:
            with Instrument(model, recorder=probe, span=sum(_PROBE)) as instrument:
                cache = SelectiveCache(model.config)
                logits, hidden = _instrumented_logits(model, tokens, instrument, cache)
        except ForwardInfluenceError as error:
            raise UsageError(f"{name}: {error}") from error
        except CACHE_TOO_SHORT as error:
            raise UsageError(f"{name} has more attending layers than its cache has, which is not supported") from error
        layers = _check_probe(name, probe, cache)
        difference = largest_difference(native, logits)
        if not _close(native, logits):
            raise UsageError(
                f"{name}: instrumented logits differ from the model's own by {difference:.2g}, so that it is refused; "
                "its attention does something that the attention interface does not show"
            )
        _check_own_masks(model, name, tokens, native)
        _check_lengths(model, name, tokens)
        head = find_head(model, hidden, logits)
    windows = tuple(layer_windows(config))
    first = next((i for i in layers if windows[i] is None), layers[0])
    query_heads, kv_heads, head_size = probe.shapes[first]
    unlike = tuple(i for i in layers if probe.shapes[i][:2] != (query_heads, kv_heads))
    if any(windows[i] is None for i in unlike):
        raise UsageError(f"{name} has different numbers of heads in different layers, which is not supported")
    return Anatomy(
        layers=len(layers),
        windows=windows,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_size=head_size,
        hidden=hidden.shape[-1],
        vocabulary=vocabulary,
        positions=positions_of(config),
        decoder_layers=_decoder_layers(model, len(layers)),
        head=head,
        unlike=unlike,
    )


def refuse_unfit_caches(name: str, config: object) -> None:
    """Refuse what no single tokens can be removed from, as far as a decoder's configuration shows it.

    Raises:
        UsageError: an encoder-decoder model, or a cache that is not one of keys and values in every layer.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{name} is an encoder-decoder model; a decoder-only language model is needed")
    try:
        layers = DynamicCache(config=config).layers  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{name}: transformers makes no cache for it ({_line(error)})") from error
    fewer = lacks_layers(config, layers)
    for layer in layers:
        kind = type(layer).__name__
        if "Linear" in kind:
            raise UsageError(f"{name} has state-space or linear-attention layers, whose state holds no single tokens")
        if kind == "DummyLayer" or fewer:
            raise UsageError(f"{name} has layers that share another layer's cache or hold none, which is not supported")
        if not isinstance(layer, CacheLayerMixin) or kind not in ("DynamicLayer", "DynamicSlidingWindowLayer"):
            raise UsageError(f"{name} keeps its cache in {kind}, which is not supported (keys and values are needed)")


def _close(one: Tensor, two: Tensor) -> bool:
    """Whether two ways to the same logits agree as far as their dtype goes."""
    return close(one, two, 1e-3 if one.dtype in (torch.float32, torch.float64) else 1e-1)


def _native_logits(model: PreTrainedModel, tokens: Tensor, lengths: int | tuple[int, ...]) -> Tensor:
    """Logits of the model's own plainest attention, in chunks (eager knows sinks and soft-capping)."""
    before = attention_implementations(model)
    failure: Exception | None = None
    try:
        for implementation in ("eager", before):  # some cannot run eagerly in float64
            model.set_attn_implementation(implementation)
            try:
                return _chunked_logits(model, tokens, lengths)
            except Exception as error:  # whatever a model's code raises on a cache that it does not know
                failure = error
    finally:
        model.set_attn_implementation(before)
    assert failure is not None
    raise UsageError(
        f"{type(model).__name__} does not run over two chunks with a cache ({_line(failure)})"
    ) from failure


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def _chunked_logits(model: PreTrainedModel, tokens: Tensor, lengths: int | tuple[int, ...]) -> Tensor:
    cache = DynamicCache(config=text_config(model.config))
    return torch.cat([run(model, chunk, cache).logits[0] for chunk in tokens.split(lengths, dim=1)])


def _probe_tokens(config: object, vocabulary: int) -> Tensor:
    """Ordinary tokens, none of them special: some models skip padding when they number positions."""
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    ordinary = [i for i in range(min(vocabulary, 1000)) if i not in special]
    return torch.tensor([ordinary[i * 7919 % len(ordinary)] for i in range(sum(_PROBE))])


def _check_own_masks(model: PreTrainedModel, name: str, tokens: Tensor, native: Tensor) -> None:
    """The mask that layers bring once something is removed must say all that the model's own mask says."""
    empty = SelectiveCache(model.config)
    heads = torch.zeros(1, 0, dtype=torch.bool, device=tokens.device)
    cache = masked(model.config, None, [heads] * len(empty.full_layers()), after=0)
    with Instrument(model, span=sum(_PROBE)) as instrument:
        logits, _ = _instrumented_logits(model, tokens, instrument, cache)
    if not _close(native, logits):
        raise UsageError(
            f"{name}: its attention masks or biases depend on more than order (logits differ by "
            f"{largest_difference(native, logits):.2g} under a plain causal mask), which removal would lose"
        )


def _check_lengths(model: PreTrainedModel, name: str, tokens: Tensor) -> None:
    """What the first tokens give must not depend on how long the text gets, rotary factors apart, which are pinned.

    A token at the far end stands for a long text; causal attention hides it from the first ones.
    """
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    for length in telling_lengths(model):
        if length <= tokens.shape[1]:
            continue
        found = []
        for last in (tokens.shape[1] - 1, length - 1):
            positions[0, -1] = last
            try:
                with pinned(model, length):
                    found.append(model(tokens, position_ids=positions, use_cache=False).logits[0, :-1])
            except (IndexError, RuntimeError):  # a table of positions that ends before
                break
        if len(found) == 2 and not _close(*found):
            raise UsageError(
                f"{name}: what it makes of the first tokens changes when a text gets {length} tokens long, and not by "
                f"its rotary embedding alone (logits differ by {largest_difference(*found):.2g}); this is not supported"
            )


def _instrumented_logits(
    model: PreTrainedModel, tokens: Tensor, instrument: Instrument, cache: SelectiveCache
) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    handle = backbone(model).register_forward_hook(lambda m, a, o: kept.append(o[0][0]))
    instrument.cache = cache
    try:
        parts = [run(model, chunk, cache).logits[0] for chunk in tokens.split(_PROBE, dim=1)]
    finally:
        handle.remove()
    return torch.cat(parts), torch.cat(kept)


def _check_probe(name: str, probe: _Probe, cache: SelectiveCache) -> list[int]:
    layers = sorted(probe.shapes)
    if not layers:
        raise UsageError(f"{name} does not go through transformers' attention interface, so that nothing can be seen")
    expected = len(cache.layers)
    if layers != list(range(expected)):
        raise UsageError(f"{name}: only {len(layers)} of its {expected} layers go through the attention interface")
    if any(count != len(_PROBE) for count in probe.calls.values()):
        raise UsageError(f"{name} attends more than once per layer (cross-attention?), which is not supported")
    for i in cache.full_layers():
        keys = cache.layers[i].keys
        if keys is None or keys.shape[1] != probe.shapes[i][1] or keys.shape[3] != probe.shapes[i][2]:
            raise UsageError(
                f"{name} does not attend with the keys that its cache holds (latent attention, or heads shared by "
                "experts), so that no entry has a score of its own; this is not supported"
            )
    return layers


def _decoder_layers(model: PreTrainedModel, count: int) -> dict[int, nn.Module]:
    """The decoder layers: the items of the one list of modules that hold the attention modules, by layer_idx."""
    found: dict[int, nn.Module] = {}
    for path, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or index in found:
            continue
        match = re.match(r"(.*?\.\d+)(\.|$)", path)
        if match:
            found[index] = model.get_submodule(match.group(1))
    if sorted(found) != list(range(count)):
        raise UsageError(f"{type(model).__name__}: its decoder layers could not be told apart")
    return found
