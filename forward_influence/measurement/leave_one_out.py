"""Leave-one-out: every token, or block of tokens, of a short context removed by itself. Exact, and so slow.

The ground truth for estimates, and a picture: influence by token and by distance.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from forward_influence.data.spans import Layout, described_layout
from forward_influence.errors import ForwardInfluenceError, UsageError, alternatives
from forward_influence.influence.ablation import Ablation, removal, shuffled
from forward_influence.influence.effects import effect_of, names
from forward_influence.influence.measure import measure_ablations
from forward_influence.influence.noise_floor import FLAG_FACTOR, taken_off
from forward_influence.measurement.blocks import sentence_blocks, windows
from forward_influence.measurement.choices import MapChoices
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_tokens, require_known
from forward_influence.selectors.selection import Selection
from forward_influence.storage.manifest import differing_fields
from forward_influence.storage.tables import encode_table, read_table, values_sha256
from forward_influence.tracing.recorder import record
from forward_influence.tracing.trace import Trace
from forward_influence.utils.configuration import described
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.files import sha256, write_whole
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.tokenization import text_pieces
from forward_influence.utils.versions import library_versions

#: Raised where what a map's columns hold changes, so that maps of two kinds do not mix in one file.
_FORMAT = 5
#: Fields of a map's identity whose values say nothing to people.
_DIGESTS = ("model", "tokens")
#: Blocks measured between two writes: what a stopped map loses at most.
_AT_ONCE = 16


@described
@dataclass(frozen=True)
class MapRequest(MapChoices):
    """What to map, checked; of a document that is measured by spans (`layout`), blocks lie in its candidates, and its
    measured positions are the distances.
    """

    layout: Layout | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effect not in names():
            raise UsageError(f"`effect` {self.effect} is unknown; it is {alternatives(names())}")
        if self.sentences and (self.block != 1 or self.stride is not None):
            raise UsageError("`sentences` are blocks by themselves; leave out `block` and `stride`")
        if self.stride is not None and self.stride > self.block:
            raise UsageError(f"`stride` {self.stride} leaves tokens out between blocks of {self.block}; lower it")

    @property
    def measured(self) -> int:
        """How many positions are measured."""
        return self.continuation if self.layout is None else self.layout.count

    @property
    def positions(self) -> Tensor | None:
        """Their distances; None for all."""
        if self.layout is None:
            return None
        return torch.cat([torch.arange(start, end) for start, end in self.layout.positions])

    def blocks(self, pieces: Sequence[str]) -> list[tuple[int, int]]:
        """(first, behind the last) token of each block, of a context whose tokens have these texts."""
        whole = (0, self.context) if self.layout is None or self.layout.candidates is None else self.layout.candidates
        if self.sentences:
            return sentence_blocks(pieces, *whole)
        return windows(*whole, self.block, self.stride or self.block)

    @property
    def bins(self) -> list[tuple[int, int]]:
        """(first, behind the last) distance of each bin."""
        return list(pairwise([*range(0, self.measured, self.bin_width), self.measured]))


@dataclass(frozen=True)
class MapControls:
    """What a map is to be read against, mean KL in nats over the whole continuation.

    Attributes:
        noise_floor: of an empty selection whose entries are stored in another order.
        positive: of removing all tokens but the first; NaN where there is one only.
    """

    noise_floor: float = float("nan")
    positive: float = float("nan")


def influence_map(
    model: Model,
    tokens: Tensor,
    request: MapRequest,
    out: str | os.PathLike[str],
    *,
    name: str = "",
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Remove each block of a context from every layer and head in turn, and write what it did to `out` (parquet).

    Running the same again goes on where it was stopped; every 16 blocks are written.

    Args:
        tokens: (context + continuation,) ids, more are left out.
        name: of the document.

    Returns:
        One row per block and distance bin: `block`, `first`, `last` (tokens first <= i < last), `text`, `low`, `high`
        (distances), `kl` (mean over the bin without the noise floor, nats), `nll_delta`; `floor`, the bin's mean KL of
        an empty selection whose entries are stored in another order (rounding alone), and `flagged`, whether `kl` is
        below 4 times that.

    Raises:
        UsageError: too few tokens, or `out` holds another map; the fields that differ are named.
        ForwardInfluenceError: `out` does not read back, token ids that the model does not know, or removing all tokens
            but the first changes nothing.
    """
    progress = progress or Silent()
    n, m = request.context, request.continuation
    what = name or "the document"
    tokens = checked_tokens(tokens, what)
    if len(tokens) < n + m:
        raise UsageError(f"{what} has {len(tokens)} tokens, fewer than {n} + {m}; ask for less")
    require_known(model, tokens[: n + m], what)
    path = Path(out)
    identity = _identity(model, tokens[: n + m], request)
    done = _read(path, identity)
    pieces = text_pieces(model.tokenizer, tokens[:n].tolist())
    blocks = request.blocks(pieces)
    missing = blocks[0 if done.empty else int(done["block"].max()) + 1 :]
    if not missing:
        return done
    trace = record(model, tokens[:n], span=n + m, chunk=chunk)
    progress.begin(len(missing) * m + m * (3 + -(-len(missing) // _AT_ONCE)), "leave-one-out")
    try:
        floors, controls = _controls(model, trace, tokens[n : n + m], request, chunk, progress)
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            ablations = []
            for first, last in some:
                one = _without(trace, first, last, f"tokens {first} to {last - 1}", request)
                ablations.append(dataclasses.replace(one, empty=True))  # a token may well change nothing
            _, found = measure_ablations(model, trace, tokens[n : n + m], ablations, chunk=chunk, progress=progress)
            rows = []
            number = len(blocks) - len(missing) + start - 1
            for (first, last), influence in zip(some, found, strict=True):
                number += 1
                text = "".join(pieces[first:last])
                for (low, high), floor in zip(request.bins, floors, strict=True):
                    measured = influence.kl[low:high].double().numpy()
                    kl = float(taken_off(measured.mean(), np.asarray(floor), (measured != 0).mean()))
                    delta = float(influence.nll_delta[low:high].double().nanmean())
                    flagged = kl < FLAG_FACTOR * floor
                    rows.append((number, first, last, text, low, high, kl, delta, floor, flagged))
            new = pd.DataFrame(rows, columns=_COLUMNS)
            done = new if done.empty else pd.concat([done, new], ignore_index=True)
            _write(path, done, identity, controls)
    finally:
        progress.end()
    return done


_COLUMNS = ["block", "first", "last", "text", "low", "high", "kl", "nll_delta", "floor", "flagged"]


def _without(trace: Trace, first: int, last: int, label: str, request: MapRequest) -> Ablation:
    """The removal of tokens first <= i < last from every layer and head."""
    mask = torch.zeros(trace.shape, dtype=torch.bool, device=trace.tokens.device)
    mask[..., first:last] = True
    selection = Selection(mask, trace.layers)
    felt = effect_of(request.effect)
    return removal(trace, selection, "drop", request.continuation, label, request.positions, effect=felt)


def _controls(
    model: Model, trace: Trace, continuation: Tensor, request: MapRequest, chunk: int, progress: Progress
) -> tuple[list[float], MapControls]:
    """The noise floor of each bin, and what the whole map's controls are."""
    felt = effect_of(request.effect)
    ablations: list[Ablation] = [shuffled(trace, request.continuation, effect=felt, positions=request.positions)]
    if trace.n > 1:  # the first stays: with no context at all there is nothing to attend to
        ablations.append(_without(trace, 1, trace.n, "dropping all tokens but the first", request))
    _, (noise, *positive) = measure_ablations(model, trace, continuation, ablations, chunk=chunk, progress=progress)
    floors = [float(noise.kl[low:high].double().mean()) for low, high in request.bins]
    everything = float(positive[0].kl.double().mean()) if positive else float("nan")
    return floors, MapControls(float(noise.kl.double().mean()), everything)


def _identity(model: Model, tokens: Tensor, request: MapRequest) -> dict[str, Any]:
    """What a map is a map of; another in the same file is refused."""
    digest = sha256(np.ascontiguousarray(tokens.cpu().numpy()).tobytes())
    shared = {"format": _FORMAT, "model": model.fingerprint, "configuration": model.configuration}
    # what is not asked for is left out, so that maps of earlier versions go on
    asked = {name: value for name, value in vars(request).items() if value is not None and value is not False}
    if request.layout is not None:
        asked["layout"] = described_layout(request.layout) | {"candidates": request.layout.candidates}
    return {**shared, "versions": library_versions(), "tokens": digest, **json.loads(json.dumps(asked))}


def _read(path: Path, identity: dict[str, Any]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=_COLUMNS)
    try:
        table, metadata = read_table(path)
    except ForwardInfluenceError as error:
        raise ForwardInfluenceError(f"{error}; choose another `out`") from error
    known = _held(metadata, "influence_map")
    if known is None:
        raise UsageError(f"{path} exists and is no influence map; choose another `out`")
    if known != identity:
        digests = [name for name in _DIGESTS if known.get(name) != identity.get(name)]
        there, here = ({k: v for k, v in one.items() if k not in _DIGESTS} for one in (known, identity))
        shown = "; ".join([*digests, *differing_fields(there, here)])
        raise UsageError(f"{path} holds another map (different: {shown}); choose another `out`")
    if metadata.get("digest") not in (None, values_sha256(table)):  # maps of earlier versions have none
        raise ForwardInfluenceError(f"{path.name} does not read back (its content differs); choose another `out`")
    return table.to_pandas()


def _held(metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    """A dictionary that a table's metadata hold; None where they do not."""
    try:
        found = json.loads(metadata.get(key, ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, frame: pd.DataFrame, identity: dict[str, Any], controls: MapControls) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {"influence_map": json.dumps(identity), "controls": json.dumps(vars(controls))}
    write_whole(path, encode_table(table, {**metadata, "digest": values_sha256(table)}))


def read_controls(path: str | os.PathLike[str]) -> MapControls:
    """The controls of a map.

    Raises:
        UsageError: the file is no map.
    """
    return MapControls(**(_held(_table(path)[1], "controls") or {}))


def _table(path: str | os.PathLike[str]) -> tuple[pa.Table, dict[str, str]]:
    try:
        table, metadata = read_table(Path(path))
    except ForwardInfluenceError as error:
        raise UsageError(f"{path} is no influence map: {error}") from error
    if _held(metadata, "influence_map") is None:
        raise UsageError(f"{path} is no influence map; `forward-influence influence-map` writes one")
    return table, metadata
