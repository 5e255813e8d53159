"""The run folder: its schema, parts that are written whole or not at all, and what lets a stopped run go on.

    runs/NAME/manifest.json                          what was asked, of which model, documents, versions
    runs/NAME/parts/<document>.parquet               one row per condition, arrays over the continuation
    runs/NAME/timings/<document>.json                seconds and tokens; kept apart, for they differ from run to run
    runs/NAME/selections/<document>.safetensors      with save_selections: what was selected, token by token

Everything downstream of a measurement reads only this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError

SCHEMA_VERSION = 1
_LONGEST_VALUE = 120  # characters of a value in a message
_WRITING = ".writing-"  # what the names of half-written files begin with
MANIFEST = "manifest.json"

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


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration, independent of key order."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()


def part_stem(name: str, fingerprint: str) -> str:
    """A file name for a document: readable, never a path, unique by its content fingerprint."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-48:].strip("-") or "document"
    return f"{readable}-{fingerprint[:12]}"


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds all of it or the file as it was before.

    Raises:
        StorageError: it cannot be written (disk full, no permission, ...).
    """
    with _storing(path):
        _write_whole(path, data)


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Failures of the file system in words."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or type(error).__name__}; free some space or choose a folder that "
            "can be written; what was written before is kept, and the same command continues"
        ) from error


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_WRITING)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
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


def encode_part(rows: Sequence[Mapping[str, Any]], configuration: str) -> bytes:
    """Rows (one per condition, keys as in `SCHEMA`) as the bytes of a parquet file that carries its own digest."""
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    arrays = [pa.array(columns[f.name], type=f.type, from_pandas=False) for f in SCHEMA]
    metadata = {"schema_version": str(SCHEMA_VERSION), "configuration": configuration, "digest": _digest(rows)}
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_part(path: Path, configuration: str | None = None) -> list[dict[str, Any]]:
    """The rows of a part, arrays as numpy.

    Raises:
        ForwardInfluenceError: the file does not read back whole, or belongs to another configuration.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False).read()
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        columns = {name: _column(table, name) for name in SCHEMA.names}
    except (OSError, pa.ArrowException, KeyError, ValueError, UnicodeDecodeError) as error:
        raise ForwardInfluenceError(f"{path.name} does not read back ({type(error).__name__})") from error
    rows = [{name: columns[name][i] for name in SCHEMA.names} for i in range(table.num_rows)]
    if metadata.get("digest") != _digest(rows):
        raise ForwardInfluenceError(f"{path.name} does not read back (its content differs from its digest)")
    if configuration is not None and metadata.get("configuration") != configuration:
        raise ForwardInfluenceError(f"{path.name} belongs to another configuration")
    return rows


def _column(table: pa.Table, name: str) -> list[Any]:
    column = table.column(name)
    if name in _ARRAYS or name in _INT_ARRAYS:
        dtype = _ARRAYS.get(name, np.int32)
        return [None if not v.is_valid else v.values.to_numpy(zero_copy_only=False).astype(dtype) for v in column]
    return list(column.to_pylist())


@dataclass(frozen=True)
class Run:
    """A folder of results, opened for reading.

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
        """What was asked for: the part of the manifest that decides whether a run can be continued."""
        return self.manifest["configuration"]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The documents of the run in the order measured: name, fingerprint, tokens, part (file stem)."""
        return self.manifest["documents"]

    def part_path(self, stem: str) -> Path:
        """Where the part of a document lies."""
        return self.folder / "parts" / f"{stem}.parquet"

    def selections_path(self, stem: str) -> Path:
        """Where the selections of a document lie, if they were saved."""
        return self.folder / "selections" / f"{stem}.safetensors"

    def timings_path(self, stem: str) -> Path:
        """Where the timings of a document lie."""
        return self.folder / "timings" / f"{stem}.json"

    def is_measured(self, stem: str) -> bool:
        """Whether a document's part is there and reads back whole, for this configuration."""
        try:
            read_part(self.part_path(stem), self.manifest["configuration_hash"])
        except ForwardInfluenceError:
            return False
        return True

    def measured(self) -> list[dict[str, Any]]:
        """The documents whose parts are there and whole."""
        return [d for d in self.documents if self.is_measured(d["part"])]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row of every whole part, document by document in the order of the manifest."""
        for document in self.documents:
            path = self.part_path(document["part"])
            if path.exists():
                try:
                    yield from read_part(path, self.manifest["configuration_hash"])
                except ForwardInfluenceError:
                    continue

    def frame(self) -> pd.DataFrame:
        """All rows as a DataFrame; array columns hold numpy arrays (m,) or None."""
        return pd.DataFrame(list(self.rows()), columns=SCHEMA.names)

    def verified(self) -> list[dict[str, Any]]:
        """What `--verify` found, a dictionary per condition checked; empty where none was."""
        found: list[dict[str, Any]] = []
        for document in self.documents:
            try:
                timings = json.loads(self.timings_path(document["part"]).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found += timings.get("verified", []) if isinstance(timings, dict) else []
        return found

    def write_part(self, stem: str, rows: Sequence[Mapping[str, Any]], timings: Mapping[str, Any]) -> None:
        """Write one document's rows and timings, each file whole or not at all; the part last."""
        write_whole(self.timings_path(stem), json.dumps(timings, indent=1).encode())
        write_whole(self.part_path(stem), encode_part(rows, self.manifest["configuration_hash"]))

    def is_abandoned(self) -> bool:
        """Whether nothing was ever measured here and nobody is about to: a first attempt that failed."""
        if any((self.folder / "parts").glob("*.parquet")):
            return False
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; a second process is refused rather than mixed in."""
        lock = FileLock(self.folder / ".lock")
        with _storing(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:  # an OSError of its own
                raise ForwardInfluenceError(
                    f"{self.folder} is being written by another process; wait for it, or choose another --out"
                ) from None
        try:
            self._clear_leftovers()
            yield
        finally:
            lock.release()

    def _clear_leftovers(self) -> None:
        """Remove what a killed process was writing; the lock is held, so that nobody writes now."""
        for folder in (self.folder, *(self.folder / name for name in ("parts", "timings", "selections"))):
            for leftover in folder.glob(f"{_WRITING}*"):
                leftover.unlink(missing_ok=True)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder for reading.

    Raises:
        UsageError: there is no run there, or its manifest is unreadable or of an unknown schema.
    """
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is not a run folder (no {MANIFEST} in it); give one that `measure --out` named")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path / MANIFEST} is not a readable manifest ({error}); restore it, measure anew") from error
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} was made with schema {version}, this version reads {SCHEMA_VERSION}; "
            "read it with the version named in its manifest, or measure anew"
        )
    if wrong := _wrong_in(manifest):
        raise UsageError(f"{path / MANIFEST} is not a readable manifest ({wrong}); restore it or measure anew")
    return Run(path, manifest)


def _wrong_in(manifest: Mapping[str, Any]) -> str | None:
    """What keeps a manifest from being used; None where nothing does. Part names must not lead out."""
    if not isinstance(manifest.get("configuration"), dict) or not isinstance(manifest.get("configuration_hash"), str):
        return "no configuration"
    documents = manifest.get("documents")
    if not isinstance(documents, list):
        return "no documents"
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            return "a document without a name"
        if not isinstance(part := document.get("part"), str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", part):
            return f"the part of document {document['name'][:40]!r} is no file name"
    return None


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences naming the fields in which two configurations differ, long values in short."""
    differing = [
        key
        for key in sorted({*old, *new})
        if json.dumps(old.get(key), sort_keys=True) != json.dumps(new.get(key), sort_keys=True)
    ]
    if {"max_documents", "sample", "seed", "documents"} & {*differing}:  # then other documents go without saying
        differing = [key for key in differing if key != "document_fingerprints"]
    return [f"{key}: {_in_short(old.get(key))} there, {_in_short(new.get(key))} now" for key in differing]


def _in_short(value: Any) -> str:
    text = json.dumps(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{len(value)} of them" if isinstance(value, list | dict) else text[:_LONGEST_VALUE] + "..."


def create_or_continue(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Run:
    """Make a run folder for `manifest`, or open the one that is there if it was made from the same configuration.

    Args:
        manifest: everything but `schema` and `configuration_hash`, which are added.

    Raises:
        UsageError: the folder holds a run of another configuration (differing fields named), or something else.
    """
    path = Path(folder)
    digest = configuration_hash(manifest["configuration"])
    if (path / MANIFEST).exists():
        run = open_run(path)
        if run.manifest["configuration_hash"] == digest:
            return run
        if not run.is_abandoned():
            fields = differing_fields(run.configuration, manifest["configuration"])
            raise UsageError(f"{path} holds a run of another configuration ({'; '.join(fields)}); choose another --out")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not a run folder; choose another --out")
    content = {"schema": SCHEMA_VERSION, "configuration_hash": digest, **manifest}
    write_whole(path / MANIFEST, json.dumps(content, indent=1, sort_keys=False, default=str).encode())
    return Run(path, json.loads(json.dumps(content, default=str)))
