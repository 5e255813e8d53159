"""What a model must pass before it is measured: short texts through it in different ways, whose logits must agree."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, masked, text_config
from forward_influence.instrument.compat import attention_implementations
from forward_influence.instrument.forward import run
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary_span import pinned, telling_lengths
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.steps import Steps, remember
from forward_influence.utils.closeness import close, largest_difference

#: Tokens in the probe's two chunks.
PROBE = (29, 14)
_ONE_BY_ONE = (PROBE[0], *(1,) * PROBE[1])
#: How a text may be cut without its logits changing, in the order in which it is tried; the last three where layers
#: carry states.
_WAYS = (
    (PROBE, Steps()),
    (PROBE, Steps(numbered=True)),
    (_ONE_BY_ONE, Steps(single=True)),
    (_ONE_BY_ONE, Steps(single=True, numbered=True)),
)
#: A token alone and the same among others differ by rounding up to here, of one plus the largest logit.
_ALONE = 1e-4


def same_logits(one: Tensor, two: Tensor) -> bool:
    """Whether two ways to the same logits agree as far as their dtype goes."""
    return close(one, two, 1e-3 if one.dtype in (torch.float32, torch.float64) else 1e-1)


def probe_tokens(config: object, vocabulary: int) -> Tensor:
    """Ordinary tokens, none of them special: some models skip padding when they number positions."""
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    ordinary = [i for i in range(min(vocabulary, 1000)) if i not in special]
    return torch.tensor([ordinary[i * 7919 % len(ordinary)] for i in range(sum(PROBE))])


def find_steps(model: PreTrainedModel, tokens: Tensor, stateful: bool) -> tuple[Steps, tuple[int, ...], Tensor]:
    """How a model's tokens may follow its cache, the lengths of the passes that showed it, and the model's own logits.

    Args:
        tokens: (1, q) of the probe.
        stateful: whether its layers carry states, of which not all can be continued anyhow.

    Raises:
        UsageError: in no way does a text that is cut give what the whole gives.
    """
    whole = _native_logits(model, tokens, (sum(PROBE),), Steps())
    remember([model, backbone(model)], Steps())  # what was found of it before may not hold any more
    for lengths, steps in _WAYS if stateful else _WAYS[:1]:
        native = _native_logits(model, tokens, lengths, steps)
        if same_logits(whole, native):
            break
    else:
        raise UsageError(
            f"{type(model).__name__}: its logits depend on how a text is cut into chunks: its tokens see the future, "
            "or it does not carry the past in a cache of keys and values"
        )
    if stateful and not steps.single:
        last = _native_logits(model, tokens, (sum(PROBE) - 1, 1), steps)[-1]
        tolerance = _ALONE if last.dtype in (torch.float32, torch.float64) else 1e-1
        steps = Steps(numbered=steps.numbered, joined=True, alone=close(native[-1], last, tolerance))
    return steps, lengths, native


def nearest_native(
    model: PreTrainedModel, tokens: Tensor, lengths: tuple[int, ...], steps: Steps, native: Tensor, logits: Tensor
) -> Tensor:
    """The model's own logits (q, vocabulary) to judge instrumented ones by.

    Eager attention rounds scores to the model's dtype. In half precision large scores lose so much by it that eager
    logits may be further from float32 ones than any other way's (by 5.9 against 1.0 in Qwen2.5-Coder-1.5B, which has
    large key biases). There the attention that the model came with is as good a judge, and the nearer one is taken.

    Args:
        native: of eager attention.
        logits: instrumented.
    """
    if native.dtype in (torch.float32, torch.float64) or same_logits(native, logits):
        return native
    other = _native_logits(model, tokens, lengths, steps, eagerly=False)
    return min(native, other, key=lambda found: largest_difference(found, logits))


def _native_logits(
    model: PreTrainedModel, tokens: Tensor, lengths: tuple[int, ...], steps: Steps, eagerly: bool = True
) -> Tensor:
    """Logits of the model's own plainest attention, in chunks (eager knows sinks and soft-capping)."""
    before = attention_implementations(model)
    failure: Exception | None = None
    try:
        for implementation in ("eager", before) if eagerly else (before,):  # some cannot run eagerly in float64
            model.set_attn_implementation(implementation)
            try:
                return _chunked_logits(model, tokens, lengths, steps)
            except Exception as error:  # whatever a model's code raises on a cache that it does not know
                failure = error
    finally:
        model.set_attn_implementation(before)
    assert failure is not None
    raise UsageError(
        f"{type(model).__name__} does not run over two chunks with a cache ({kind_and_line(failure)})"
    ) from failure


def kind_and_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def _chunked_logits(model: PreTrainedModel, tokens: Tensor, lengths: tuple[int, ...], steps: Steps) -> Tensor:
    cache, seen, found = DynamicCache(config=text_config(model.config)), 0, []
    for chunk in tokens.split(lengths, dim=1):
        numbers = steps.positions(chunk.shape[1], seen, chunk.device)
        found.append(run(model, chunk, cache, **numbers).logits[0])
        seen += chunk.shape[1]
    return torch.cat(found)


def instrumented_logits(
    model: PreTrainedModel, tokens: Tensor, instrument: Instrument, cache: SelectiveCache, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Logits (q, vocabulary) and last hidden states (q, hidden) of tokens (1, q) in passes of these lengths."""
    kept: list[Tensor] = []
    handle = backbone(model).register_forward_hook(lambda m, a, o: kept.append(o[0][0]))
    instrument.cache = cache
    try:
        parts = [run(model, chunk, cache).logits[0] for chunk in tokens.split(lengths, dim=1)]
    finally:
        handle.remove()
    return torch.cat(parts), torch.cat(kept)


def check_own_masks(model: PreTrainedModel, tokens: Tensor, native: Tensor, lengths: tuple[int, ...]) -> None:
    """The mask that layers bring once something is removed must say all that the model's own mask says.

    Raises:
        UsageError: it does not.
    """
    empty = SelectiveCache(model.config)
    heads = torch.zeros(1, 0, dtype=torch.bool, device=tokens.device)
    cache = masked(model.config, None, [heads] * len(empty.full_layers()), after=0)
    with Instrument(model, span=sum(PROBE)) as instrument:
        logits, _ = instrumented_logits(model, tokens, instrument, cache, lengths)
    if not same_logits(native, logits):
        raise UsageError(
            f"{type(model).__name__}: its attention masks or biases depend on more than order (logits differ by "
            f"{largest_difference(native, logits):.2g} under a plain causal mask), which removal would lose"
        )


def check_lengths(model: PreTrainedModel, tokens: Tensor) -> None:
    """What the first tokens give must not depend on how long the text gets, rotary factors apart, which are pinned.

    A token at the far end stands for a long text; causal attention hides it from the first ones.

    Raises:
        UsageError: it does.
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
        if len(found) == 2 and not same_logits(*found):
            raise UsageError(
                f"{type(model).__name__}: what it makes of the first tokens changes when a text gets {length} tokens "
                f"long, and not by its rotary embedding alone (logits differ by {largest_difference(*found):.2g}); "
                "this is not supported"
            )


def check_removal(model: PreTrainedModel, tokens: Tensor, lengths: tuple[int, ...], difference: float) -> None:
    """Entries that leave the cache must give what the same entries give when they stay and are masked.

    A self-test: other entries of each layer and head go after the first chunk, and the second runs over the rest. It
    does so twice, with other passes between, which a cache that holds all of the past does not feel.

    Args:
        difference: of instrumented logits from the model's own with nothing removed, for the message.

    Raises:
        UsageError: the two differ: the model's attention depends on what its cache holds in a way that is not known.
    """
    span, n = sum(PROBE), lengths[0]
    generator = torch.Generator().manual_seed(0)
    with Instrument(model, span=span) as instrument:
        whole = SelectiveCache(model.config, span=span, room=span)
        instrumented_logits(model, tokens[:, :n], instrument, whole, lengths[:1])
        full = [layer for layer in whole.layers if isinstance(layer, SelectiveLayer)]
        if not full:
            return
        heads = [layer.keys.shape[1] for layer in full if layer.keys is not None]
        gone = [(torch.rand(count, n, generator=generator) < 0.5).to(tokens.device) for count in heads]
        for entries in gone:
            entries[:, :4] = False  # without the first tokens everything changes, and nothing is told apart
        evicted = []
        for _ in range(2):
            branch = whole.branch([~entries for entries in gone], span - n)
            evicted.append(instrumented_logits(model, tokens[:, n:], instrument, branch, lengths[1:])[0])
            cache = masked(model.config, span, gone, after=n)
            hidden, _ = instrumented_logits(model, tokens, instrument, cache, lengths)
    apart = max(evicted, key=lambda found: largest_difference(hidden[n:], found))
    if not same_logits(hidden[n:], apart):
        raise UsageError(
            f"{type(model).__name__}: what is removed from its cache and what is masked in it give logits that differ "
            f"by {largest_difference(hidden[n:], apart):.2g}, although with nothing removed they are the model's own "
            f"within {difference:.2g}; its attention depends on more than the entries that it sees, so it is refused"
        )
