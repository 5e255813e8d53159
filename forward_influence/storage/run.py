"""The run folder: what it holds, how it is made, held for writing, and opened for reading.

    runs/NAME/manifest.json                          what was asked, of which model, documents, versions
    runs/NAME/parts/<document>.parquet               one row per condition, arrays over the continuation
    runs/NAME/timings/<document>.json                seconds and tokens; kept apart, for they differ from run to run
    runs/NAME/selections/<document>.safetensors      with save_selections: what was selected, token by token
    runs/NAME/stopped.json                           with `until`: after how many documents, and why

Everything downstream of a measurement reads only this. A run can lie at any address that fsspec knows (s3://...): then
the folder is a local mirror of it, see `forward_influence.storage.remote`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.storage.manifest import (
    MANIFEST,
    configuration_hash,
    differing_fields,
    encode_manifest,
    read_manifest,
    refuse_foreign,
    to_continue,
    wrong_in_run,
)
from forward_influence.storage.remote import TOKENS, Mirror, mirror_of
from forward_influence.storage.shards import (
    KINDS,
    SCHEMA,
    SCHEMA_VERSION,
    Part,
    encode_part,
    load_part,
    part_stem,
    read_part,
)
from forward_influence.utils.files import file_sha256, remove_unfinished, sha256, storing, write_whole

if TYPE_CHECKING:
    from forward_influence.storage.study_plan import StudyPlan

__all__ = [
    "KINDS",
    "MANIFEST",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Run",
    "configuration_hash",
    "create_or_continue",
    "differing_fields",
    "encode_part",
    "held_for_writing",
    "open_run",
    "part_stem",
    "read_part",
    "write_whole",
]

STOPPED = "stopped.json"
#: Where rules that are added to a run are measured, and the mark that all of it is ready to take the run's place.
ADDING, READY = ".adding", "ready"
_LOCK = ".lock"
_FOLDERS = ("parts", "timings", "selections")
#: What to call a folder that holds none, and what may lie in it before its manifest does.
_OURS = ("not a run folder", (_LOCK, TOKENS))
#: What is written into, so that none of it may lead elsewhere.
_WRITTEN = (
    *(_LOCK, *_FOLDERS, ADDING, f"{ADDING}/run", f"{ADDING}/whole"),
    *(f"{ADDING}/whole/{name}" for name in _FOLDERS),
)


@dataclass(frozen=True)
class Run:
    """A folder of results, opened for reading.

    Attributes:
        folder: where it is; the local mirror of a run that lies elsewhere.
        manifest: the parsed manifest.json.
        mirror: the address that the folder mirrors; None for most.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    mirror: Mirror | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.mirror.name if self.mirror is not None else self.folder.resolve().name

    @property
    def where(self) -> str:
        """The folder or address, as one would type it."""
        return str(self.folder) if self.mirror is None else self.mirror.address

    @property
    def configuration(self) -> dict[str, Any]:
        """What was asked for: the part of the manifest that decides whether a run can be continued."""
        return self.manifest["configuration"]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The documents of the run in the order measured: name, fingerprint, tokens, part (file stem).

        Of a run that stopped where its intervals were narrow enough, those up to there.
        """
        planned: list[dict[str, Any]] = self.manifest["documents"]
        stopped = self.stopped
        return planned if stopped is None else planned[: stopped["documents"]]

    @property
    def plan(self) -> StudyPlan | None:
        """The questions that the run was to answer, made before it; None where there was no plan.

        Raises:
            UsageError: what the manifest holds is no plan.
        """
        content = self.configuration.get("plan")
        if content is None:
            return None
        from forward_influence.storage.study_plan import plan_of  # brings pydantic, which most runs do without

        return plan_of(content, f"the plan of {self.where}")

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Why and after how many documents `until` ended the run; None where it did not."""
        try:
            found = json.loads((self.folder / STOPPED).read_text(encoding="utf-8"))
            return found if isinstance(found["documents"], int) and found["documents"] > 0 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def part_path(self, stem: str) -> Path:
        """Where the part of a document lies."""
        return self.folder / "parts" / f"{stem}.parquet"

    def selections_path(self, stem: str) -> Path:
        """Where the selections of a document lie, if they were saved."""
        return self.folder / "selections" / f"{stem}.safetensors"

    def timings_path(self, stem: str) -> Path:
        """Where the timings of a document lie."""
        return self.folder / "timings" / f"{stem}.json"

    def part(self, stem: str) -> Part | None:
        """A document's part, or None where it is not there whole, for this configuration."""
        try:
            return load_part(self.part_path(stem), self.manifest["configuration_hash"])
        except ForwardInfluenceError:
            return None

    def is_measured(self, stem: str) -> bool:
        """Whether a document's part, and its selections where some were saved, read back whole."""
        part = self.part(stem)
        return part is not None and self._has_selections(stem, part)

    def _has_selections(self, stem: str, part: Part) -> bool:
        if not part.selections:
            return True
        try:
            return file_sha256(self.selections_path(stem)) == part.selections
        except OSError:
            return False

    def measured(self) -> list[dict[str, Any]]:
        """The documents whose parts are there and whole."""
        return [d for d in self.documents if self.is_measured(d["part"])]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row of every whole part, document by document in the order of the manifest."""
        for document in self.documents:
            part = self.part(document["part"])
            if part is not None:
                yield from part.rows

    def curves(self) -> pd.DataFrame:
        """All rows as a DataFrame; array columns hold numpy arrays (m,) or None."""
        return pd.DataFrame(list(self.rows()), columns=SCHEMA.names)

    def verified(self) -> list[dict[str, Any]]:
        """What `verify` found, a dictionary per condition checked; empty where none was."""
        found: list[dict[str, Any]] = []
        for document in self.documents:
            try:
                timings = json.loads(self.timings_path(document["part"]).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found += timings.get("verified", []) if isinstance(timings, dict) else []
        return found

    def write_part(
        self, stem: str, rows: Sequence[Mapping[str, Any]], timings: Mapping[str, Any], selections: bytes | None = None
    ) -> None:
        """Write one document's selections, timings and rows, each file whole or not at all; the rows last, for they say
        that all is there."""
        digest = ""
        if selections is not None:
            digest = sha256(selections)
            self._write(self.selections_path(stem), selections)
        self._write(self.timings_path(stem), json.dumps(timings, indent=1).encode())
        self._write(self.part_path(stem), encode_part(rows, self.manifest["configuration_hash"], digest))

    def write_stopped(self, found: Mapping[str, Any]) -> None:
        """Say after how many documents the run ended, and why."""
        self._write(self.folder / STOPPED, json.dumps(found, indent=1).encode())

    def go_on(self) -> None:
        """Forget that the run was ended."""
        (self.folder / STOPPED).unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.remove(self.folder / STOPPED)

    def _write(self, path: Path, data: bytes) -> None:
        write_whole(path, data)
        self.push(path)

    def push(self, *paths: Path) -> None:
        """Bring files of the folder to the address that it mirrors, if it does; those that are not there are left."""
        if self.mirror is None:
            return
        for path in paths:
            if path.exists():
                self.mirror.push(path)

    def is_abandoned(self) -> bool:
        """Whether nothing was ever measured here and nobody is about to: a first attempt that failed."""
        if self._has_parts():
            return False
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def _has_parts(self) -> bool:
        return any((self.folder / "parts").glob("*.parquet"))


@contextmanager
def held_for_writing(out: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for writing, made if it is not there; a second process is refused rather than mixed in.

    What an earlier process could not write to the folder's address is written there first.

    Raises:
        UsageError: the folder holds something else, or links that lead out of it.
        ForwardInfluenceError: another process writes there.
        StorageError: it cannot be written.
    """
    path, mirror = mirror_of(out)
    refuse_foreign(path, *_OURS)
    _refuse_links(path)
    lock = FileLock(path / _LOCK)
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # an OSError of its own
            raise ForwardInfluenceError(
                f"{path} is being written by another process; wait for it, or choose another `out`"
            ) from None
    try:
        for folder in (path, *(path / name for name in _FOLDERS)):
            remove_unfinished(folder)
        finish_adding(path)
        if mirror is not None:
            mirror.pull()
            _push_missing(path, mirror)
        yield
    finally:
        lock.release()


def _push_missing(path: Path, mirror: Mirror) -> None:
    """Write to the address what is measured and not there: a part after what belongs to it, the manifest last."""
    if not (path / MANIFEST).is_file():
        return
    run = Run(path, _read_manifest(path), mirror)
    places = (run.selections_path, run.timings_path, run.part_path)
    stems = [document["part"] for document in run.manifest["documents"]]
    missing = mirror.missing([path / MANIFEST, *(place(stem) for stem in stems for place in places)])
    for stem in stems:
        files = [place(stem) for place in places if place(stem) in missing]
        if files and run.is_measured(stem):
            run.push(*files)
    if path / MANIFEST in missing:
        run.push(path / MANIFEST)


def finish_adding(folder: Path) -> None:
    """Let a run that rules were added to take the place of the old one, if it is ready; call it while holding it.

    Raises:
        UsageError: what is ready is no run.
        StorageError: it cannot be written.
    """
    adding = folder / ADDING
    if not (adding / READY).exists():
        return
    whole = adding / "whole"
    with storing(folder):
        if (whole / MANIFEST).exists():  # else all of it has taken its place, for the manifest is the last
            _read_manifest(whole, f"delete {adding}: the run stays as it was")
            for kind in ("selections", "parts"):
                for path in sorted((whole / kind).glob("*")):
                    (folder / kind).mkdir(exist_ok=True)
                    os.replace(path, folder / kind / path.name)
            os.replace(whole / MANIFEST, folder / MANIFEST)
        shutil.rmtree(adding)


def _refuse_links(path: Path) -> None:
    """What would be written through a link lands in a folder that nobody named."""
    for link in (path / name for name in _WRITTEN):
        if link.is_symlink():
            raise UsageError(f"{link} is a symbolic link, and runs are not written through one; remove it")


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open a run for reading: a folder, or an address like s3://bucket/run, which is mirrored first.

    Raises:
        UsageError: there is no run there, or its manifest is unreadable or of an unknown schema.
    """
    path, mirror = mirror_of(folder)
    if mirror is not None:
        mirror.pull()
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{folder} is not a run folder (no {MANIFEST} in it); give one that `measure` wrote")
    return Run(path, _read_manifest(path), mirror)


def _read_manifest(folder: Path, remedy: str = "restore it or measure anew") -> dict[str, Any]:
    return read_manifest(folder, SCHEMA_VERSION, remedy=remedy, wrong=wrong_in_run)


def create_or_continue(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Run:
    """Make a run for `manifest`, or open the one that is there if it was made from the same configuration.

    Call it while the folder is `held_for_writing`. A run in which nothing was ever measured gives way.

    Args:
        manifest: everything but `schema` and `configuration_hash`, which are added.

    Raises:
        UsageError: the folder holds a run of another configuration (differing fields named), or something else.
    """
    path, mirror = mirror_of(folder)
    if mirror is not None:
        mirror.pull()
    refuse_foreign(path, *_OURS)
    there = open_run(folder) if (path / MANIFEST).exists() else None
    begun = there is not None and there._has_parts()
    if there is not None and begun:
        plans = [configuration.get("plan") for configuration in (there.configuration, manifest["configuration"])]
        if any(plans):
            from forward_influence.storage.study_plan import refuse_other_plan  # brings pydantic

            refuse_other_plan(path, *plans)
    content = to_continue(
        path,
        None if there is None else there.manifest,
        manifest,
        schema=SCHEMA_VERSION,
        kind=None,
        begun=begun,
    )
    if content is None:
        assert there is not None  # it stays as it is
        return there
    data = encode_manifest(content)
    run = Run(path, json.loads(data), mirror)
    run._write(path / MANIFEST, data)
    return run
