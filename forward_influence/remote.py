"""Runs that lie at an address of fsspec (s3://bucket/run, gs://..., a shared folder): a local folder mirrors them.

Everything is written and read in the mirror; a file goes to its address when it is whole, a document's part last. An
object store shows an object whole or not at all, so that what is promised of a folder holds there too. One driver at a
time: the lock is on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forward_influence.errors import StorageError, UsageError

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://.+")
_TOKENS = ".mirror.json"
_PULLED = ("manifest.json", "stopped.json", "parts", "timings", "selections")


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

        Raises:
            StorageError: the address cannot be read.
        """
        with self._speaking("read"):
            if not self.files.exists(self.root):
                return
            there = {
                path.removeprefix(self.root).lstrip("/"): info
                for path, info in self.files.find(self.root, detail=True).items()
            }
            known = self._tokens()
            wanted = {name: info for name, info in there.items() if name.split("/")[0] in _PULLED}
            for name, info in wanted.items():
                token = _token(info)
                target = self._inside(name)
                if known.get(name) != token or not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.files.get_file(f"{self.root}/{name}", str(target))
                    known[name] = token
            for name in [name for name in known if name not in wanted]:
                self._inside(name).unlink(missing_ok=True)
                del known[name]
            self._remember(known)

    def push(self, path: Path) -> None:
        """Write a file of the mirror to its address.

        Raises:
            StorageError: it cannot be written there.
        """
        name = path.relative_to(self.folder).as_posix()
        with self._speaking("write"):
            self.files.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), f"{self.root}/{name}")
            self.files.invalidate_cache()
            self._remember({**self._tokens(), name: _token(self.files.info(f"{self.root}/{name}"))})

    def remove(self, path: Path) -> None:
        """Remove a file at the address."""
        name = f"{self.root}/{path.relative_to(self.folder).as_posix()}"
        with self._speaking("write"):
            if self.files.exists(name):
                self.files.rm_file(name)

    def _inside(self, name: str) -> Path:
        """A path in the mirror; names that lead out are refused."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise StorageError(f"{self.address} holds {name!r}, which leads out of the folder")
        return path

    def _tokens(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / _TOKENS).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, tokens: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _TOKENS).write_text(json.dumps(tokens))

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


def mirror_of(where: str | os.PathLike[str]) -> tuple[Path, Mirror | None]:
    """The folder of a run, and the mirror that it is where an address was given.

    Raises:
        UsageError: no such protocol, or what it needs is not installed.
    """
    text = os.fspath(where)
    if not is_address(text):
        return Path(text), None
    if text.startswith("file://"):
        return Path(text.removeprefix("file://")), None
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError(f'{text} needs fsspec; pip install "forward-influence[remote]"') from error
    try:
        files, root = url_to_fs(text.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise UsageError(f"{text} cannot be used: {next(iter(str(error).splitlines()), '')}") from error
    from forward_influence.store import cache_folder

    digest = hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:16]
    return (folder := cache_folder() / "mirrors" / digest), Mirror(text.rstrip("/"), folder, files, root.rstrip("/"))
