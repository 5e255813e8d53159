"""Runs that lie at an address of fsspec (s3://bucket/run, gs://..., a shared folder): a local folder mirrors them.

Everything is written and read in the mirror; a file goes to its address when it is whole, a document's part last. An
object store shows an object whole or not at all, so that what is promised of a folder holds there too. One driver at a
time: the lock is on this machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forward_influence.errors import StorageError, UsageError
from forward_influence.utils.files import file_sha256, sha256, write_whole

_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)(://.*[^/].*)")
#: Of a mirror: what its files were when they were last the same there and here.
TOKENS = ".mirror.json"
_FOLDERS = ("parts", "timings", "selections")
_PULLED = ("manifest.json", "stopped.json", *_FOLDERS)
_ON_ITS_WAY = ""  # the token of a file that is being written to the address, or was when that failed


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a run folder is named by an address, protocol://path."""
    return bool(_ADDRESS.fullmatch(os.fspath(text)))


@dataclass(frozen=True)
class Mirror:
    """A local folder that mirrors an address.

    Attributes:
        address: as typed.
        folder: the mirror, in the cache folder.
        files: the fsspec file system of the address.
        root: the address within it.
    """

    address: str
    folder: Path
    files: Any = field(repr=False, compare=False)
    root: str = ""

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rstrip("/").rpartition("/")[2]

    def pull(self) -> None:
        """Bring over what is new or another at the address; remove what is gone there.

        A file whose writing to the address failed stays as it is here: what is there may be half of it.

        Raises:
            StorageError: the address cannot be read.
        """
        with self._speaking("read"):
            known, there = self._known(), self._listed()
            before = dict(known)
            waiting = {n for n, (token, _) in known.items() if token == _ON_ITS_WAY and self._inside(n).exists()}
            for name, info in there.items():
                token = _token(info)
                target = self._inside(name)
                if name not in waiting and (known.get(name, ("", ""))[0] != token or not target.exists()):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.files.get_file(f"{self.root}/{name}", str(target))
                    known[name] = token, file_sha256(target)
            for name in [name for name in known if name not in there and name not in waiting]:
                self._inside(name).unlink(missing_ok=True)
                del known[name]
            if not there and not waiting:
                for folder in _FOLDERS:
                    with suppress(OSError):  # not there, or something in it that was never at the address
                        (self.folder / folder).rmdir()
            if known != before:
                self._remember(known)

    def missing(self, paths: Iterable[Path]) -> set[Path]:
        """Those files of the mirror that are not at the address, or not as they are here, as far as is known here."""
        known, found = self._known(), set()
        for path in paths:
            token, digest = known.get(self._name(path), (_ON_ITS_WAY, ""))
            if path.exists() and (token == _ON_ITS_WAY or digest != file_sha256(path)):
                found.add(path)
        return found

    def push(self, path: Path) -> None:
        """Write a file of the mirror to its address.

        Raises:
            StorageError: it cannot be written there.
        """
        name = self._name(path)
        with self._speaking("write"):
            digest = file_sha256(path)
            self._remember({**self._known(), name: (_ON_ITS_WAY, digest)})
            self.files.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), f"{self.root}/{name}")
            self.files.invalidate_cache()
            self._remember({**self._known(), name: (_token(self.files.info(f"{self.root}/{name}")), digest)})

    def remove(self, path: Path) -> None:
        """Remove a file at the address."""
        name = f"{self.root}/{self._name(path)}"
        with self._speaking("write"):
            if self.files.exists(name):
                self.files.rm_file(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _listed(self) -> dict[str, dict[str, Any]]:
        """What fsspec says of the run's files at the address, by name; nothing where there is no such folder.

        By `ls`, for `exists` and `find` take a store that does not answer for an empty one.
        """
        self.files.invalidate_cache()
        found: dict[str, dict[str, Any]] = {}
        for folder in ("", *_FOLDERS):
            try:
                entries = self.files.ls(f"{self.root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                continue
            for info in entries:
                name = info["name"].lstrip("/").removeprefix(self.root.lstrip("/")).lstrip("/")
                if info["type"] == "file" and name.split("/")[0] in _PULLED:
                    found[name] = info
        return found

    def _inside(self, name: str) -> Path:
        """A path in the mirror; names that lead out are refused."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise StorageError(f"{self.address} holds {name!r}, which leads out of the folder")
        return path

    def _known(self) -> dict[str, tuple[str, str]]:
        """Of every file that was brought here or there: its token at the address, and the digest of it here."""
        try:
            found = json.loads((self.folder / TOKENS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: (each[0], each[1]) for name, each in found.items() if isinstance(each, list) and len(each) == 2}

    def _remember(self, known: dict[str, tuple[str, str]]) -> None:
        write_whole(self.folder / TOKENS, json.dumps(known).encode())

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (StorageError, KeyboardInterrupt):
            raise
        except Exception as error:  # every file system of fsspec has errors of its own
            first = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise StorageError(
                f"cannot {what} {self.address}: {first}; check the address and your credentials; what was measured is "
                f"kept in {self.folder}, and the same command continues"
            ) from error


def _token(info: dict[str, Any]) -> str:
    """What tells versions of a remote file apart: its entity tag where there is one, else size and time."""
    for name in ("ETag", "etag", "md5Hash", "generation", "content_md5"):
        if info.get(name):
            return f"{name}:{info[name]}"
    return "/".join(str(info.get(name)) for name in ("size", "mtime", "LastModified", "modified", "created", "updated"))


#: The mirrors of this process by their folders, so that who names only the folder still writes to its address.
_MIRRORS: dict[Path, Mirror] = {}


def mirror_of(where: str | os.PathLike[str]) -> tuple[Path, Mirror | None]:
    """The folder of a run, and the mirror that it is where an address was given.

    Raises:
        UsageError: it looks like an address and is none; no such protocol, or what it needs is not installed.
    """
    text = os.fspath(where)
    found = _ADDRESS.fullmatch(text)
    if found is None and "://" in text:
        raise UsageError(f"{text} is not an address; give one like s3://bucket/run, or a folder")
    if found is None:
        return Path(text), _MIRRORS.get(Path(text))
    text = found[1].lower() + found[2].rstrip("/")
    if text.startswith("file://"):
        return Path(text.removeprefix("file://")), None
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError(f'{text} needs fsspec; pip install "forward-influence[remote]"') from error
    try:
        files, root = url_to_fs(text)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{text} cannot be used: {next(iter(str(error).splitlines()), '')}") from error
    from forward_influence.utils.paths import cache_folder

    folder = cache_folder() / "mirrors" / sha256(text)[:16]
    _MIRRORS[folder] = Mirror(text, folder, files, root.rstrip("/"))
    return folder, _MIRRORS[folder]
