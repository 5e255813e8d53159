"""How much memory a measurement takes above the model, as a formula, and what follows: a chunk size, or a refusal.

Kept while a document is measured (bytes of a number left out; n context, m continuation, W window, h hidden):

    context cache        2 L Hkv d n                  a layer with a window holds no more than that
    signals              L Hq d W + L Hkv n (8 R Z)   the window's queries; R gradient samples of Z zones, for oracles
    hidden states        (1 + group) m h              `group` conditions wait for the head, at most 512 MB of them
    continuation's own   2 L Hkv d m                  for effects that replay the full run's keys and values

and, one after the other, so that the peak adds the largest of them:

    recording            body(n) + what signals take meanwhile: a chunk's states of all layers (infokv), 2 x 2^22
                         attention logits (h2o), a block of logits (entropy), the backward passes (oracles)
    choosing             40 L Hkv n bytes of scores and their order, and one layer's attention of the window
    continuation         2 L Hkv d (n + m) + body(n + m)    one cache, whatever the number of conditions
    head                 3 rows V float32; rows from the vocabulary, 256 at 49,152 words on a processor, and at most m

    verification         11 Hq (n + m)^2 bytes of masks + body of n + m at once    with `verify` only

L are the layers that hold entries. Where layers hold something else than keys and values of equal heads, each cache
above is what three tokens were seen to put into the model's own: latents (rank + rope per token), index keys, states,
which do not grow with n. Direct effects over states take one more cache, copied at each position.

body(k) = chunk (2 f + 8 h) + chunk k (mask as booleans and as floats) is one layer's activations; where the cache holds
latents, + k Hq (2 dk + 2 dv) or so for the keys and values that a pass makes of them. 25 kB a row of the
largest product, 16 MB at most, come on top for what matrix libraries pack operands into and what the allocator cannot
give back. Without `verify` there is no term with m V, n^2 or conditions x cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from forward_influence.attribution.gate_gradients import GRADIENT_CHUNK, WAITING_BYTES
from forward_influence.errors import UsageError
from forward_influence.influence.effects import Effect
from forward_influence.influence.effects.total import TOTAL
from forward_influence.influence.measure import HIDDEN_BYTES
from forward_influence.instrument.lm_head import head_block
from forward_influence.measurement.controls import NOISE_POSITIONS, POSITIVE_POSITIONS, WIDE
from forward_influence.models.sizes import Sizes
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.signals.base import entries
from forward_influence.tracing.signals.gradients import backward_passes
from forward_influence.utils.memory import in_words, parse_bytes

if TYPE_CHECKING:
    from forward_influence.measurement.request import Request

#: Of what is free, so much is taken when nothing else is asked for.
DEFAULT_SHARE = 0.8
CHUNKS = (512, 256, 128, 64)


@dataclass(frozen=True)
class Peak:
    """Bytes above the model, term by term; see the module."""

    context_cache: int
    signals: int
    hidden_states: int
    own_entries: int
    recording: int
    choosing: int
    continuation: int
    head: int
    libraries: int
    verification: int = 0

    @property
    def total(self) -> int:
        """What is kept, and the largest of what comes one after the other."""
        recorded = self.context_cache + self.signals
        kept = recorded + self.hidden_states + self.own_entries
        before = recorded + max(self.recording, self.choosing, self.verification)
        return max(before, kept + max(self.continuation, self.head)) + self.libraries

    def described(self) -> str:
        """The terms in one line, megabytes."""
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name) / 1e6:,.0f} MB" for f in fields(self))


def peak(
    sizes: Sizes,
    context: int,
    continuation: int,
    conditions: int,
    chunk: int,
    effects: Sequence[Effect] = (TOTAL,),
    needs: Needs | None = None,
    verify: bool = False,
) -> Peak:
    """Peak memory above the model of measuring one document.

    Args:
        conditions: per segment.
        effects: that are measured.
        needs: what the rules read of the context.
        verify: whether a condition is checked against a masked full pass.
    """
    needs = needs or Needs()
    one = continuation * sizes.hidden * sizes.itemsize
    group = min(conditions, max(1, HIDDEN_BYTES // max(1, one)))
    # noise floor and positive control, of each effect; in 16 bits the floor covers everything
    floor = NOISE_POSITIONS if sizes.itemsize >= WIDE else continuation
    controls = min(floor, continuation) + min(POSITIVE_POSITIONS, continuation)
    rows = head_block(sizes.vocabulary, sizes.wide, accelerated=sizes.accelerated)
    compared, row = min(rows, continuation), sizes.vocabulary * sizes.wide
    own = sizes.cache_bytes(continuation)
    before, after = min(chunk, context), min(chunk, continuation)
    copied = sizes.states and any(effect.each_by_itself for effect in effects)
    costs = [signal.cost(sizes, context, before, number) for signal, number in needs.asked]
    return Peak(
        context_cache=sizes.cache_bytes(context),
        signals=sum(cost.kept for cost in costs),
        hidden_states=one * (1 + group) + controls * sizes.hidden * sizes.itemsize * len(effects),
        own_entries=max(effect.kept_bytes(sizes, continuation) for effect in effects),
        recording=_body(sizes, before, context)
        + sum(cost.recording for cost in costs)
        + (2 * rows * row if needs.head else 0)
        + (_gradients(sizes, context + continuation, own, needs) if needs.looks_ahead else 0),
        choosing=_CHOOSING * entries(sizes, context) + sum(cost.choosing for cost in costs),
        continuation=sizes.cache_bytes(context + continuation) * (2 if copied else 1)
        + _body(sizes, after, context + continuation + max(effect.extra_keys(after) for effect in effects)),
        # on an accelerator the divergence works on whole blocks, on a processor on a few rows
        head=(5 if sizes.accelerated else 3) * compared * row,
        libraries=min(_LIBRARIES, _LIBRARIES_PER_ROW * max(after, compared)),
        verification=_verification(sizes, context + continuation) if verify else 0,
    )


#: What matrix libraries pack operands into grows with the rows of a product, up to a point (docs/performance.md).
_LIBRARIES = 16_000_000
_LIBRARIES_PER_ROW = 24_600
#: Bytes per entry while a rule chooses: scores twice in float32 or float64, their order and ranks.
_CHOOSING = 40


def _body(sizes: Sizes, chunk: int, keys: int) -> int:
    """One layer's activations, the mask as booleans and as numbers, and what is made of latents."""
    activations = chunk * (2 * sizes.intermediate + 8 * sizes.hidden) * sizes.itemsize
    return activations + chunk * keys * (1 + sizes.itemsize) + keys * sizes.expanded * sizes.itemsize


def _gradients(sizes: Sizes, span: int, own: int, needs: Needs) -> int:
    """Backward passes: the full run's keys and values, what waits at them, and one chunk's graph through all layers."""
    waiting = min(backward_passes(needs) * own, max(own, WAITING_BYTES))
    chunk = min(GRADIENT_CHUNK, span)
    per_layer = chunk * (4 * sizes.intermediate + 20 * sizes.hidden) * sizes.itemsize
    # keys and values of everything are put together, and take gradients, in every layer
    return own + waiting + sizes.layers * per_layer + 3 * sizes.cache_bytes(span)


def _verification(sizes: Sizes, span: int) -> int:
    """One unchunked pass: a layer's mask of all heads, beside the last one's where it is made numbers of by hand."""
    heads = sizes.query_heads if sizes.kv_heads > 1 else 1
    masks = heads * (2 + sizes.itemsize if sizes.accelerated else 3 + 2 * sizes.itemsize) + sizes.kv_heads
    hidden = 2 * span * sizes.hidden * sizes.itemsize
    return masks * span**2 + hidden + _body(sizes, span, span) + sizes.cache_bytes(span)


def peak_of_request(sizes: Sizes, request: Request, chunk: int) -> Peak:
    """The same for a request."""
    from forward_influence.measurement.conditions import expand

    conditions = len(expand(request, "", 0, tuple(range(sizes.layers))))
    asked = request.effects, request.needs, request.verify
    return peak(sizes, request.context, request.continuation, conditions, chunk, *asked)


def fitting_chunk(sizes: Sizes, request: Request, limit: int | None, largest: int) -> int:
    """The largest chunk, at most `largest`, with which a request stays within `limit` bytes above the model.

    Raises:
        UsageError: none does; with the formula's figure.
    """
    if limit is None:
        return largest
    tried = [largest, *(chunk for chunk in CHUNKS if chunk < largest)]
    for chunk in tried:
        if peak_of_request(sizes, request, chunk).total <= limit:
            return chunk
    least = peak_of_request(sizes, request, tried[-1])
    without = "leave out `verify`, " if request.verify else ""
    raise UsageError(
        f"this needs {in_words(least.total)} above the model ({least.described()}), but {in_words(limit)} are "
        f"allowed; {without}use a smaller `context` or `continuation`, a narrower `dtype`, or raise `memory_limit`"
    )


def choose_chunk(sizes: Sizes, free: int | None, request: Request, limit: str | None, largest: int) -> int:
    """`fitting_chunk`; without a limit, within 80% of what is free."""
    allowed = parse_bytes(limit) if limit is not None else None if free is None else int(DEFAULT_SHARE * free)
    return fitting_chunk(sizes, request, allowed, largest)
