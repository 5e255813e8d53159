"""Leave-one-out: every token, or block of tokens, of a short context removed by itself. Exact, and so slow.

The ground truth for estimates, and a picture: influence by token and by distance.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence import Ablation, measure_ablations, removal
from forward_influence.models import Model
from forward_influence.progress import Progress, Silent
from forward_influence.recording import record
from forward_influence.runs import write_whole
from forward_influence.selection import Selection

#: Blocks measured between two writes: what a stopped map loses at most.
_AT_ONCE = 16


@dataclass(frozen=True)
class MapRequest:
    """What to map.

    Attributes:
        context, continuation: tokens.
        block: neighbouring tokens that are removed together.
        effect: "total" or "direct".
        bin_width: positions of the continuation whose mean KL makes one number.
    """

    context: int = 128
    continuation: int = 256
    block: int = 1
    effect: str = "total"
    bin_width: int = 32

    def __post_init__(self) -> None:
        for name in ("context", "continuation", "block", "bin_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least 1")
        if self.effect not in ("total", "direct"):
            raise UsageError(f"--effect {self.effect} is unknown; it is total or direct")

    @property
    def edges(self) -> list[int]:
        """Edges of the distance bins."""
        return [*range(0, self.continuation, self.bin_width), self.continuation]


def influence_map(
    model: Model,
    tokens: Tensor,
    request: MapRequest,
    out: str | os.PathLike[str],
    *,
    name: str = "",
    chunk: int = 512,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Remove each block of a context from every layer and head in turn, and write what it did to `out` (parquet).

    Running the same again goes on where it was stopped; every 16 blocks are written.

    Args:
        tokens: (context + continuation,) ids, more are left out.
        name: of the document.

    Returns:
        One row per block and distance bin: `block`, `first`, `last` (tokens first <= i < last), `text`, `low`, `high`
        (distances), `kl` (mean over the bin, nats), `nll_delta`.

    Raises:
        UsageError: too few tokens, or `out` holds another map.
        ForwardInfluenceError: `out` does not read back.
    """
    progress = progress or Silent()
    n, m = request.context, request.continuation
    if len(tokens) < n + m:
        raise UsageError(f"{name or 'the document'} has {len(tokens)} tokens, fewer than {n} + {m}; ask for less")
    path = Path(out)
    identity = _identity(model, tokens[: n + m], request)
    done = _read(path, identity)
    blocks = [(first, min(first + request.block, n)) for first in range(0, n, request.block)]
    missing = blocks[0 if done.empty else int(done["block"].max()) + 1 :]
    if not missing:
        return done
    trace = record(model, tokens[:n], span=n + m, chunk=chunk)
    progress.begin(len(missing) * m + m * -(-len(missing) // _AT_ONCE), "leave-one-out")
    try:
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            ablations = []
            for first, last in some:
                mask = torch.zeros(trace.shape, dtype=torch.bool, device=model.device)
                mask[..., first:last] = True
                one = removal(trace, Selection(mask, trace.layers), "drop", m, direct=request.effect == "direct")
                ablations.append(Ablation(f"tokens {first} to {last - 1}", one.branch, m, True, None, one.direct))
            _, found = measure_ablations(model, trace, tokens[n : n + m], ablations, chunk=chunk, progress=progress)
            rows = []
            for (first, last), influence in zip(some, found, strict=True):
                text = "".join(_piece(model, int(token)) for token in tokens[first:last])
                for low, high in zip(request.edges[:-1], request.edges[1:], strict=True):
                    kl = float(influence.kl[low:high].double().mean())
                    delta = float(influence.nll_delta[low:high].double().nanmean())
                    rows.append((first // request.block, first, last, text, low, high, kl, delta))
            new = pd.DataFrame(rows, columns=_COLUMNS)
            done = new if done.empty else pd.concat([done, new], ignore_index=True)
            _write(path, done, identity)
    finally:
        progress.end()
    return done


_COLUMNS = ["block", "first", "last", "text", "low", "high", "kl", "nll_delta"]


def _identity(model: Model, tokens: Tensor, request: MapRequest) -> str:
    """What a map is a map of; another in the same file is refused."""
    digest = hashlib.sha256(np.ascontiguousarray(tokens.cpu().numpy()).tobytes()).hexdigest()
    return json.dumps({"model": model.fingerprint, "tokens": digest, **vars(request)}, sort_keys=True)


def _piece(model: Model, token: int) -> str:
    decode = getattr(model.tokenizer, "decode", None)
    return decode([token]) if decode else str(token)


def _read(path: Path, identity: str) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return pd.DataFrame(columns=_COLUMNS)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ForwardInfluenceError(
            f"{path} does not read back ({type(error).__name__}); choose another --out"
        ) from error
    known = (table.schema.metadata or {}).get(b"influence_map", b"").decode()
    if known != identity:
        raise UsageError(f"{path} holds another map (or none); choose another --out")
    return table.to_pandas()


def _write(path: Path, frame: pd.DataFrame, identity: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata({"influence_map": identity})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, sink.getvalue().to_pybytes())


def read_map(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A map as `influence_map` wrote it.

    Raises:
        UsageError: the file is no map.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} is no influence map ({type(error).__name__})") from error
    if b"influence_map" not in (table.schema.metadata or {}):
        raise UsageError(f"{path} is no influence map; `forward-influence influence-map` writes one")
    return table.to_pandas()
