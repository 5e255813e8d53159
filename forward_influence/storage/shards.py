"""One document's results as a parquet file that carries its own digest, and reads back whole or not at all."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from forward_influence.errors import ForwardInfluenceError
from forward_influence.storage.manifest import steering_in
from forward_influence.storage.tables import does_not_read_back, encode_table, read_table

SCHEMA_VERSION = 2  # 2: what is held, and how much of it was pinned and chosen

#: What a row of a part is about.
KINDS = ("baseline", "condition", "noise_floor", "positive_control")

#: The columns of a part, in order. Arrays run over the continuation positions in `distance` (all of them when null).
SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("segment", pa.int32()),
        ("kind", pa.string()),
        ("selector", pa.string()),
        ("parameters", pa.string()),
        ("budget", pa.string()),
        ("selected", pa.list_(pa.int32())),
        # of what keeps entries (compressors, keep mode), per layer and head: held after the last compression and at
        # most, and of the former how many were kept whatever they score and how many were chosen
        ("held", pa.float64()),
        ("held_most", pa.float64()),
        ("pinned", pa.float64()),
        ("chosen", pa.float64()),
        ("mode", pa.string()),
        ("effect", pa.string()),
        ("seed", pa.int64()),
        ("layers", pa.list_(pa.int32())),
        ("heads", pa.list_(pa.int32())),
        ("context", pa.int32()),
        ("continuation", pa.int32()),
        ("distance", pa.list_(pa.int32())),
        ("kl", pa.list_(pa.float32())),
        ("nll_delta", pa.list_(pa.float32())),
        ("top1_changed", pa.list_(pa.bool_())),
        ("nll", pa.list_(pa.float32())),
    ]
)
_ARRAYS = {"kl": np.float32, "nll_delta": np.float32, "nll": np.float32, "top1_changed": np.bool_}
_INT_ARRAYS = ("selected", "layers", "heads", "distance")
HELD = ("held", "held_most", "pinned", "chosen")


def part_stem(name: str, fingerprint: str) -> str:
    """A file name for a document: readable, never a path, unique by its content fingerprint."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-48:].strip("-") or "document"
    return f"{readable}-{fingerprint[:12]}"


def _rows_sha256(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the values of rows, independent of the parquet encoding and the library that wrote it."""
    state = hashlib.sha256()
    for row in rows:
        for name in SCHEMA.names:
            value = row[name]
            state.update(name.encode())
            if value is None:
                state.update(b"none")
            elif name in _ARRAYS:
                state.update(np.ascontiguousarray(value, dtype=_ARRAYS[name]).tobytes())
            elif name in _INT_ARRAYS:
                state.update(np.ascontiguousarray(value, dtype=np.int32).tobytes())
            else:
                state.update(str(value).encode())
    return state.hexdigest()


def encode_part(rows: Sequence[Mapping[str, Any]], configuration: str, selections: str = "") -> bytes:
    """Rows (one per condition, keys as in `SCHEMA`) as the bytes of a parquet file that carries its own digest.

    Args:
        configuration: hash of the run's.
        selections: SHA-256 of the selections file that belongs to it; empty where there is none.
    """
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    arrays = [pa.array(columns[f.name], type=f.type, from_pandas=False) for f in SCHEMA]
    metadata = {"schema_version": str(SCHEMA_VERSION), "configuration": configuration, "digest": _rows_sha256(rows)}
    metadata["selections"] = selections
    return encode_table(pa.Table.from_arrays(arrays, schema=SCHEMA), metadata)


@dataclass(frozen=True)
class Part:
    """A part that reads back whole.

    Attributes:
        rows: keys as in `SCHEMA`, arrays as numpy.
        configuration: hash of the configuration that it was measured with.
        selections: SHA-256 of the selections file that belongs to it; empty where there is none.
    """

    rows: list[dict[str, Any]]
    configuration: str
    selections: str


def read_part(path: Path, configuration: str | None = None) -> list[dict[str, Any]]:
    """The rows of a part, arrays as numpy; see `load_part`."""
    return load_part(path, configuration).rows


def load_part(path: Path, configuration: str | None = None) -> Part:
    """Read a part.

    Raises:
        ForwardInfluenceError: the file does not read back whole, holds what no measurement writes, or belongs to
            another configuration.
    """
    table, metadata = read_table(path)
    try:
        columns = {name: _column(table, name) for name in SCHEMA.names}
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise does_not_read_back(path, type(error).__name__) from error
    rows = [{name: columns[name][i] for name in SCHEMA.names} for i in range(table.num_rows)]
    if metadata.get("digest") != _rows_sha256(rows):
        raise does_not_read_back(path, "its content differs from its digest")
    if configuration is not None and metadata.get("configuration") != configuration:
        raise ForwardInfluenceError(f"{path.name} belongs to another configuration")
    for row in rows:
        if wrong := _wrong_in(row):
            raise does_not_read_back(path, wrong)
    return Part(rows, metadata.get("configuration", ""), metadata.get("selections", ""))


def _wrong_in(row: Mapping[str, Any]) -> str | None:
    """What a row says that no measurement does; None where nothing."""
    if row["kind"] not in KINDS or row["document"] is None:
        return "a row of no known kind"
    if character := steering_in([value for value in row.values() if isinstance(value, str)]):
        return f"a name with the control character {character}"
    if row["kind"] == "baseline":
        return None if row["nll"] is not None else "a baseline without its NLL"
    arrays = [row[name] for name in ("kl", "nll_delta", "top1_changed")]
    if any(array is None for array in arrays) or row["continuation"] is None or row["context"] is None:
        return "a condition without its measurements"
    distances = row["distance"]
    length = row["continuation"] if distances is None else len(distances)
    if not all(len(array) == length for array in arrays):
        return "a condition whose arrays are of unequal length"
    if not np.isfinite(row["kl"]).all():
        return "a KL that is NaN or infinite"
    if not all(row[name] is None or 0 <= row[name] < math.inf for name in HELD):
        return "a number of entries that is none"
    inside = distances is None or not len(distances) or (distances.min() >= 0 and distances.max() < row["continuation"])
    return None if inside else "distances outside the continuation"


def _column(table: pa.Table, name: str) -> list[Any]:
    column = table.column(name)
    if name in _ARRAYS or name in _INT_ARRAYS:
        dtype = _ARRAYS.get(name, np.int32)
        return [None if not v.is_valid else v.values.to_numpy(zero_copy_only=False).astype(dtype) for v in column]
    return list(column.to_pylist())
