"""The folder of an evaluation: a manifest, one part per item and protocol while it runs, one parquet when it is done.

    evaluations/NAME/manifest.json                     what was asked, of which model, with which versions
    evaluations/NAME/parts/<task>-<length>-<protocol>-<item>.parquet   one row per compressor and budget
    evaluations/NAME/results.parquet                   all parts together, written once every item is there

Parts are written whole and renamed into place, each by one process, so that several processes (shards) can fill one
folder, and a stopped evaluation goes on where it was.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from filelock import FileLock

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.storage.manifest import MANIFEST, encode_manifest, read_manifest, refuse_foreign, to_continue
from forward_influence.storage.tables import encode_table, read_table, values_sha256
from forward_influence.utils.files import sha256, storing, write_whole

KIND = "evaluation"
#: 2: parts carry a digest of their values; 3: a prompt's whole text is tokenised once, what is held after the last
#: compression, pinned and chosen; 4: several runs of an item, and whether an answer ran into its limit.
SCHEMA_VERSION = 4
#: Schemas that can still be read, and the columns that came after them.
_BEFORE = {3: ("run", "limited")}
RESULTS = "results.parquet"
#: What results call the compressor that keeps everything, with which all others are paired.
FULL = "full"
_LOCK = ".lock"

#: The columns of results, in order; one row per item, protocol, compressor and budget.
SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("family", pa.string()),  # tasks that differ in the chain of thought only share it
        ("reasons", pa.bool_()),
        ("length", pa.int32()),
        ("protocol", pa.string()),
        ("item", pa.int32()),
        ("depth", pa.float64()),
        ("compressor", pa.string()),
        ("budget", pa.string()),
        ("run", pa.int32()),  # from 0; several where tokens are drawn
        ("every", pa.int32()),
        ("score", pa.float64()),  # 0 to 1
        ("response", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("context_tokens", pa.int32()),  # that were compressed
        ("question_tokens", pa.int32()),  # read after that
        ("new_tokens", pa.int32()),
        ("limited", pa.bool_()),  # whether it ran into the task's limit of tokens; missing where it was not noted
        # entries per layer and kv head, on average: held after the last compression, at most while answering; kept
        # whatever they score, and chosen, of what was held after the last compression
        ("held", pa.float64()),
        ("held_most", pa.float64()),
        ("pinned", pa.float64()),
        ("chosen", pa.float64()),
        ("pinned_first", pa.int32()),  # the pinned ones at the start, and at the end; missing where nothing was removed
        ("pinned_last", pa.int32()),
        ("grain", pa.string()),  # of what was chosen: token, layer or entry; missing where nothing was
        ("cache_bytes", pa.int64()),
        ("full_bytes", pa.int64()),
        ("prefill_seconds", pa.float64()),  # of the item; shared by its compressors
        ("compress_seconds", pa.float64()),  # scoring, choosing and copying, this row alone
        ("answer_seconds", pa.float64()),  # of the batch in which `streams` rows were answered together
        ("streams", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Evaluation:
    """A folder of evaluation results.

    Attributes:
        folder: where it is.
        manifest: the parsed manifest.json.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def configuration(self) -> dict[str, Any]:
        """What was asked for."""
        return dict(self.manifest["configuration"])

    def part_path(self, stem: str) -> Path:
        """Where a part lies."""
        return self.folder / "parts" / f"{stem}.parquet"

    def has(self, stem: str) -> bool:
        """Whether a part is there and reads back whole, for this configuration."""
        return _read(self.part_path(stem), self.manifest["configuration_hash"]) is not None

    def write(self, stem: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a part, whole or not at all."""
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        write_whole(self.part_path(stem), _encoded(table, self.manifest["configuration_hash"]))

    def merge(self, stems: Iterable[str]) -> bool:
        """Write `results.parquet` if every part is there; whether it was."""
        tables = []
        for stem in stems:
            table = _read(self.part_path(stem), self.manifest["configuration_hash"])
            if table is None:
                return False
            tables.append(table)
        merged = pa.concat_tables(tables)
        write_whole(self.folder / RESULTS, _encoded(merged, self.manifest["configuration_hash"]))
        return True

    def started(self) -> bool:
        """Whether anything was answered."""
        return (self.folder / RESULTS).exists() or any((self.folder / "parts").glob("*.parquet"))

    def unfinished(self) -> str | None:
        """How much of an evaluation is there and how to go on, in a line; None where it is whole."""
        asked = self.configuration
        axes = [len(axis) for name in ("tasks", "lengths", "protocols") if isinstance(axis := asked.get(name), list)]
        if len(axes) < 3 or not isinstance(asked.get("items"), int):
            return None  # nothing that `evaluate` wrote
        total = asked["items"] * math.prod(axes)
        found = self.frame()
        there = len(found[["task", "length", "protocol", "item"]].drop_duplicates())
        if there >= total:
            return None
        return f"unfinished: {there} of {total} parts are there; to continue: {self.manifest.get('command')}"

    def frame(self) -> pd.DataFrame:
        """All results, columns as in `SCHEMA`; of an unfinished evaluation the parts that are there.

        Raises:
            ForwardInfluenceError: there are none yet.
        """
        digest = self.manifest["configuration_hash"]
        whole = _read(self.folder / RESULTS, digest)
        if whole is not None:
            return whole.to_pandas()
        paths = sorted((self.folder / "parts").glob("*.parquet"))
        tables = [t for t in (_read(path, digest) for path in paths) if t is not None]
        if not tables:
            raise ForwardInfluenceError(f"{self.folder} holds no results yet; the same `evaluate` again continues it")
        return pa.concat_tables(tables).to_pandas()


def _encoded(table: pa.Table, configuration: str) -> bytes:
    return encode_table(table, {"configuration": configuration, "digest": values_sha256(table)})


def _read(path: Path, configuration: str) -> pa.Table | None:
    """A table of this configuration, or None where it is not there or does not read back as it was written."""
    try:
        read, metadata = read_table(path)
        later = next((names for names in _BEFORE.values() if not {*names} & {*read.column_names}), ())
        known = pa.schema([column for column in SCHEMA if column.name not in later])
        table = read.replace_schema_metadata(None).cast(known)
        whole = metadata.get("digest") == values_sha256(table)
    except (ForwardInfluenceError, pa.ArrowException, ValueError, KeyError):
        return None
    if later:
        first = pa.array([0] * len(table), pa.int32())
        missing = pa.nulls(len(table), pa.bool_())
        table = table.append_column("run", first).append_column("limited", missing).select(SCHEMA.names)
    return table if whole and metadata.get("configuration") == configuration else None


def part_stem(task: str, length: int, protocol: str, item: int) -> str:
    """A file name for an item's part; tasks whose names come out alike are told apart by a digest."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", task).strip("-")[:40]
    if readable != task:
        readable += "-" + sha256(task)[:8]
    return f"{readable}-{length}-{protocol}-{item:05d}"


def open_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """Open an evaluation's folder for reading.

    Raises:
        UsageError: there is none, or its manifest is unreadable or of another kind.
    """
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is no evaluation (no {MANIFEST} in it); give the folder that `evaluate` wrote")
    return Evaluation(
        path, read_manifest(path, (SCHEMA_VERSION, *_BEFORE), kind=KIND, remedy="restore it or evaluate anew")
    )


def create_or_continue(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Evaluation:
    """Make an evaluation's folder, or open the one that is there if it was made from the same configuration.

    Several processes may do so at once; one makes it. A request that was refused leaves a manifest only, which the
    corrected one replaces.

    Raises:
        UsageError: the folder holds an evaluation of another configuration (differing fields named), or something else.
        StorageError: it cannot be written.
    """
    path = Path(folder)
    refuse_foreign(path, "no evaluation", (_LOCK,))
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / _LOCK):
        refuse_foreign(path, "no evaluation", (_LOCK,))
        there = open_evaluation(path) if (path / MANIFEST).exists() else None
        content = to_continue(
            path,
            None if there is None else there.manifest,
            manifest,
            schema=SCHEMA_VERSION,
            kind=KIND,
            begun=there is not None and there.started(),
        )
        if content is not None:
            write_whole(path / MANIFEST, encode_manifest(content))
        return open_evaluation(path)
