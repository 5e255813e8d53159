"""The sequences of a `compress` block: one, or several that run side by side, each with its own budget and entries.

One sequence lives in the block's cache itself. Several have a cache each, which are joined into the block's cache when
the first pass over a batch comes, or once each has read a text of its own (`Rows.apart`, `Rows.join`). A sequence that
has ended leaves; no pass computes anything for it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.compression.compressor import Compressor
from forward_influence.compression.row import Row
from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.batch import BatchLayer, Padding, RowOfLayer, batch_layers, leave
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.selective_layer import SelectiveLayer

if TYPE_CHECKING:
    from forward_influence.compression.session import CompressedCache


class Rows:
    """All sequences of a block.

    Args:
        compressors: one for each sequence; a single one serves as many as come.
        cache: the block's.
        span: the longest sequence, where the cache was made for one.
        rotation: the model's rotary embedding, attached, where a compressor reads it.

    Attributes:
        rows: in the order of the batch, those that left among them.
        active: those that take part in passes over the block's cache.
        batched: whether the block's cache holds several.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        compressors: Sequence[Compressor],
        cache: CompressedCache,
        span: int | None,
        rotation: Rotation | None,
    ) -> None:
        self._model, self._anatomy, self._span, self._rotation = model, anatomy, span, rotation
        self.compressors, self.cache = tuple(compressors), cache
        self.batched = False
        self._side = Side()
        self._ended: set[int] = set()
        if len(self.compressors) == 1:
            self.rows = [Row(model, anatomy, self.compressors[0], cache, self._rotation_for(self.compressors[0]))]
        else:
            self.rows = [self._alone(compressor) for compressor in self.compressors]
        self.active = list(self.rows)

    def _rotation_for(self, compressor: Compressor) -> Rotation | None:
        return self._rotation.of_row() if self._rotation is not None and compressor.needs.rotation else None

    def _alone(self, compressor: Compressor) -> Row:
        cache = SelectiveCache(self._model.config, span=self._span)
        return Row(self._model, self._anatomy, compressor, cache, self._rotation_for(compressor))

    def serving(self, cache: Any) -> list[Row]:
        """The sequences that a pass over this cache is about; none for a strange cache."""
        if cache is self.cache and (self.batched or len(self.rows) == 1):
            return self.active
        return [] if self.batched else [row for row in self.rows if row.cache is cache]

    def apart(self) -> list[SelectiveCache]:
        """A cache for each sequence, to read texts of their own one by one before `join`."""
        return [row.cache for row in self.rows]

    def several(self, count: int) -> None:
        """Be a batch of `count` sequences that have seen nothing.

        Raises:
            UsageError: there are compressors for another number of sequences.
        """
        if len(self.compressors) not in (1, count):
            raise UsageError(f"{count} sequences came, and there are compressors for {len(self.compressors)}")
        if len(self.compressors) == 1:
            self.rows = [self._alone(self.compressors[0]) for _ in range(count)]
        self.join()

    def join(self) -> None:
        """Put all sequences side by side in the block's cache."""
        self.cache.padding = Padding()
        self.cache.layers = batch_layers([row.cache for row in self.rows], self.cache.padding)
        for place, row in enumerate(self.rows):
            for i, layer in enumerate(self.cache.layers):
                if not isinstance(layer, BatchLayer):
                    row.cache.layers[i] = RowOfLayer(layer, place)  # type: ignore[call-overload]
        self.active, self.batched = list(self.rows), True

    def ended(self, rows: Tensor) -> None:
        """These of all sequences, (rows,) bool, are complete and leave before the next pass."""
        if self.batched:
            self._ended.update(rows.nonzero()[:, 0].tolist())

    def refuse_ended(self) -> None:
        """Refuse another call of `generate` once a sequence has ended.

        Raises:
            UsageError: some have.
        """
        if self._ended:
            raise UsageError(
                f"{len(self._ended)} of {len(self.rows)} sequences have ended, and what they held is given up; open "
                "another `with compress(...)` block for the next texts"
            )

    def without_ended(self) -> None:
        """Let those leave that are complete."""
        gone = [place for place, row in enumerate(self.active) if self.rows.index(row) in self._ended]
        if gone:
            self.leave(gone)

    def leave(self, gone: Sequence[int]) -> None:
        """Go on without the sequences at these places among the active ones."""
        staying = [place for place in range(len(self.active)) if place not in gone]
        for place in gone:
            self.active[place].leave()
        self.active = [self.active[place] for place in staying]
        if staying:
            leave(self.cache, staying)
        for place, row in enumerate(self.active):
            for layer in row.cache.layers:
                if isinstance(layer, RowOfLayer):
                    layer.index = place

    def places(self) -> list[int]:
        """Where the active sequences stand among all."""
        return [place for place, row in enumerate(self.rows) if not row.left]

    def turn(self, pads: Sequence[int], length: int) -> None:
        """The next pass brings `length` tokens for each active sequence, of which `pads` only pad."""
        assert self.cache.padding is not None
        self.cache.padding.pads = list(pads)
        self._side.members = [
            (place, row, pad)
            for place, (row, pad) in enumerate(zip(self.active, pads, strict=True))
            if pad < length and row.recorder.on
        ]
        for place, row, pad in self._side.members:
            if row.rotation is not None:
                row.rotation.row, row.rotation.skipped = place, pad

    def recorder(self, served: Sequence[Row]) -> Any:
        """What sees the passes of these sequences."""
        return self._side if self.batched else served[0].recorder

    def settle(self) -> None:
        """A pass is over: put what is left of each sequence together, where entries were evicted."""
        changed = [row.changed() for row in self.active]
        if self.batched and any(changed):
            for layer in self.cache.layers:
                if isinstance(layer, BatchLayer):
                    layer.gather()

    def compress(self) -> None:
        """Compress all that take part now."""
        for row in self.active:
            row.compress()
        self.settle()


class Side:
    """Shows each sequence of a batch its own part of what passes through the model.

    Attributes:
        members: (place in the batch, sequence, how many of its tokens in the running pass only pad).
    """

    def __init__(self) -> None:
        self.members: list[tuple[int, Row, int]] = []

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """Queries (rows, query_heads, q, d); what each sequence holds is in its own layer."""
        for place, row, pad in self.members:
            stored = row.cache.layers[layer]
            if isinstance(stored, SelectiveLayer):
                row.recorder.attention(layer, query[place : place + 1, :, pad:], stored.keys, geometry, biased)

    def hidden(self, layer: int, states: Tensor) -> None:
        """A decoder layer's output (rows, q, hidden)."""
        for place, row, pad in self.members:
            row.recorder.hidden(layer, states[place : place + 1, pad:])


def front(seen: Sequence[int], columns: int, device: torch.device) -> Tensor | None:
    """(rows, columns) int64 attention mask of sequences aligned at their end; None where none is shorter."""
    if all(n == columns for n in seen):
        return None
    places = torch.arange(columns, device=device)
    return (places >= columns - torch.tensor(list(seen), device=device)[:, None]).to(torch.int64)
