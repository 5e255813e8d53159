"""Parquet files that carry who they belong to, and read back whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forward_influence.errors import ForwardInfluenceError
from forward_influence.utils.files import json_sha256

_MOST_UNPACKED, _MOST_RATIO = 1 << 28, 200  # bytes of a table, and how far it may be packed


def encode_table(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """A table as the bytes of a parquet file, each page with a checksum.

    Args:
        metadata: what the file says of itself, in place of what the table says.
    """
    sink = pa.BufferOutputStream()
    described = table.replace_schema_metadata(dict(metadata))
    pq.write_table(described, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_table(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """A table and what its file says of itself.

    Raises:
        ForwardInfluenceError: the file does not read back, or would unpack to far more than it is.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False)
        _refuse_bomb(path, file)
        table = file.read()
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:  # a flipped bit in a name is a ValueError
        raise does_not_read_back(path, type(error).__name__) from error
    return table, metadata


def values_sha256(table: pa.Table) -> str:
    """SHA-256 (hex) over the values of a table, whatever the parquet encoding and the library that wrote it."""
    return json_sha256(table.to_pylist())


def does_not_read_back(path: Path, why: str) -> ForwardInfluenceError:
    """What to raise about a file that is not as it was written."""
    return ForwardInfluenceError(f"{path.name} does not read back ({why})")


def _refuse_bomb(path: Path, file: pq.ParquetFile) -> None:
    """A few kilobytes can unpack to gigabytes; what is measured hardly compresses."""
    groups = range(file.metadata.num_row_groups)
    unpacked = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    if unpacked > _MOST_UNPACKED and unpacked > _MOST_RATIO * path.stat().st_size:
        raise does_not_read_back(path, f"it would unpack to {unpacked / 1e9:.1f} GB")
