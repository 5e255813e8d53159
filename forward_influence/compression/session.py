"""Compressing a cache while an unmodified model uses it.

    with fi.compress(model, "infokv", budget=0.25, every=1024) as cache:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4096)

Hooks see each forward pass: a long prompt is read in chunks, signals are recorded, and when a pass is over the cache
is compressed where the schedule says so. Nothing of this stays when the block is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from forward_influence.compression.compressor import Compressor, make_compressor
from forward_influence.compression.guard import criteria, guarded
from forward_influence.compression.passes import Passes
from forward_influence.compression.rows import Rows
from forward_influence.compression.stats import Stats
from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy, examine
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.given import given_model
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.rotary_span import depends_on_length
from forward_influence.models.fingerprint import mark
from forward_influence.models.loading import Model
from forward_influence.selectors import Selector
from forward_influence.selectors.protection import PROTECT_FIRST

#: Model -> its mark when it was examined, and what was found.
_anatomies: WeakKeyDictionary[PreTrainedModel, tuple[str, Anatomy]] = WeakKeyDictionary()


class CompressedCache(SelectiveCache):
    """The cache of a `compress` block; give it to `generate` or `model(...)` as `past_key_values`.

    It holds one sequence, or those of a batch, each with its own entries.

    Attributes:
        compressor: what compresses it; of a batch, its first sequence.
    """

    compressor: Compressor
    _rows: Rows | None
    _final: tuple[Stats, ...] = ()

    @classmethod
    def of_layers(cls, layers: Any) -> SelectiveCache:
        """A plain selective cache: copies are not compressed any more."""
        return SelectiveCache.of_layers(layers)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append to a layer; refused after the block, where nothing would keep its masks right."""
        self._inside()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def stats(self) -> Stats:
        """What is held now, and what it took; the last state after the block.

        Raises:
            UsageError: there are several sequences, see `row_stats`.
        """
        found = self.row_stats
        if len(found) != 1:
            raise UsageError(f"this cache holds {len(found)} sequences; ask for row_stats, a tuple of one for each")
        return found[0]

    @property
    def row_stats(self) -> tuple[Stats, ...]:
        """The same of each sequence of a batch; of one that has ended, when it did."""
        return self._final if self._rows is None else tuple(row.stats() for row in self._rows.rows)

    def apart(self) -> list[SelectiveCache]:
        """A cache for each of several compressors, to read texts one by one before they are joined.

        Pass them to the model as `past_key_values`: each is compressed where its compressor says so.
        """
        return self._inside().apart()

    def join(self) -> None:
        """Put the sequences that were read apart side by side: this cache is a batch's from now on.

        Raises:
            UsageError: the model has layers that cannot be put side by side.
        """
        self._inside().join()

    def leave(self, places: Sequence[int]) -> None:
        """Go on without the sequences at these places of the batch, which keep their `row_stats`."""
        self._inside().leave(places)

    def criteria(self, settings: GenerationConfig, tokenizer: Any) -> StoppingCriteriaList:
        """What ends a text under these settings, watched, for a call of `generate` that goes past the block's guard.

        Without it a sequence of a batch that has ended stays in it until all have.
        """
        rows = self._inside()
        return criteria(rows, settings.eos_token_id, settings.stop_strings, tokenizer)

    def compress(self) -> None:
        """Compress now, whatever the schedule says."""
        self._inside().compress()

    def _inside(self) -> Rows:
        if self._rows is None:
            raise UsageError(
                "this cache belongs to a `with compress(...)` block that was left; use it inside the block"
            )
        return self._rows

    def reset(self) -> None:
        """Refused: new sequences take a new block."""
        raise UsageError("a compressed cache goes on with what it holds; open another `with compress(...)` block")

    def close(self) -> None:
        """The block is left."""
        if self._rows is not None:
            self._final, self._rows = self.row_stats, None


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """What a model is made of, examined once, and again where it was changed."""
    now = mark(model)
    if model not in _anatomies or _anatomies[model][0] != now:
        _anatomies[model] = now, examine(model)
    return _anatomies[model][1]


@contextmanager
def compress(
    model: Model | PreTrainedModel,
    rule: str | Selector | Compressor | Sequence[Compressor] = "infokv",
    budget: str | float | int = 0.25,
    *,
    every: int | None = None,
    prefill: bool = True,
    scheme: str | None = None,
    protect_first: int = PROTECT_FIRST,
    protect_last: int | float | str | None = None,
    keep_prompt: bool | None = None,
    seed: int | Sequence[int] | None = None,
    span: int | None = None,
) -> Iterator[CompressedCache]:
    """A cache that compresses itself while `model.generate(..., past_key_values=cache)` runs.

    Args:
        model: a loaded `Model`, or any transformers causal LM whose attention can be instrumented, compiled by torch or
            adapted by PEFT too; inside the block it runs uncompiled.
        rule, budget, every, prefill, scheme, protect_first, protect_last, keep_prompt: see `make_compressor`. A
            ready `Compressor` brings its own; several of them are for the sequences of a batch, one each. Otherwise
            every sequence of a batch is compressed alike.
        seed: of random rules, or one for each of several compressors; default: the rule's own.
        span: how long the sequence will get at most; layers with a sliding window at least that long count as full.
            Needed for models whose rotary embedding depends on it (LongRoPE, dynamic NTK): all of the sequence is
            rotated by the factors of that length.

    Yields:
        The `CompressedCache`. Its `stats` tell what is held; of the sequences of a batch, which are padded on the left,
        its `row_stats`. Each is compressed as it would be alone.

    Raises:
        UsageError: an unknown compressor, a budget of nothing, a model without full-attention layers, and later on
            padding on the right, beam search and other generation settings that cannot be with a compressed cache (see
            `forward_influence.models.generation_settings`), or a forward pass without the cache.
    """
    compressors = _made(
        rule,
        seed,
        budget,
        every=every,
        prefill=prefill,
        scheme=scheme,
        protect_first=protect_first,
        protect_last=protect_last,
        keep_prompt=keep_prompt,
    )
    if isinstance(model, Model):
        model.require_unchanged()
    plain = model.model if isinstance(model, Model) else given_model(model)
    anatomy = model.anatomy if isinstance(model, Model) else anatomy_of(plain)
    if span is None and depends_on_length(plain):
        raise UsageError(
            f"the rotary embedding of {type(plain).__name__} depends on how long a sequence gets; say so with span=N, "
            "prompt and what is generated together"
        )
    cache = CompressedCache(plain.config, span=span)
    if not cache.full_layers():
        raise UsageError(
            f"every layer of {type(plain).__name__} has a sliding window, so that nothing can be compressed; if the "
            "sequence stays within it, say so with span=N"
        )
    cache.compressor = compressors[0]
    reads = [compressor.needs for compressor in compressors]
    with ExitStack() as stack:
        stack.callback(cache.close)
        cache._rows = None
        rotation = Rotation(plain, span or 1) if any(needs.rotation for needs in reads) else None
        if rotation is not None:
            rotation.attach()
            stack.callback(rotation.detach)
            token = torch.zeros(1, dtype=torch.int64, device=plain.device)
            rotation.verify(plain, token, cache.full_layers())
        rows = cache._rows = Rows(plain, anatomy, compressors, cache, span, rotation)
        watched = anatomy.decoder_layers if any(needs.hidden for needs in reads) else {}
        instrument = stack.enter_context(Instrument(plain, None, watched, cache, span=span))
        stack.enter_context(guarded(plain, rows))
        Passes(plain, cache, rows, span).attach(instrument, stack)
        yield cache


def _made(
    rule: str | Selector | Compressor | Sequence[Compressor],
    seed: int | Sequence[int] | None,
    *arguments: Any,
    **more: Any,
) -> list[Compressor]:
    """A compressor for each sequence, or one for all of them, with its seed."""
    if isinstance(rule, str | Selector):
        found = [make_compressor(rule, *arguments, **more)]
    else:
        found = [rule] if isinstance(rule, Compressor) else list(rule)
    if not found:
        raise UsageError("no compressor; give one, or one for each sequence")
    if seed is None:
        return found
    seeds = [seed] * len(found) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(found):
        raise UsageError(f"{len(seeds)} seeds came for {len(found)} compressors; give one for each")
    return [dataclasses.replace(c, rule=c.rule.at(s)) for c, s in zip(found, seeds, strict=True)]
