"""Files that people typed, files written whole or not at all, digests, and failures of the file system in words."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forward_influence.errors import StorageError, UsageError

#: What the names of half-written files begin with.
WRITING = ".writing-"
#: Bytes: longer files were not typed by a person, but are data given by mistake.
_LARGEST_TYPED = 1_000_000


def typed_file(path: Path, what: str, remedy: str) -> bytes:
    """The bytes of a file that a person wrote.

    Args:
        what: it is, such as "a plan".
        remedy: what to give instead where it cannot be.

    Raises:
        UsageError: it cannot be read, or is far too long.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_TYPED + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if len(data) > _LARGEST_TYPED:
        raise UsageError(f"{path} is too long for {what}; {remedy}")
    return data


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds all of it or the file as it was before.

    Raises:
        StorageError: it cannot be written (disk full, no permission, ...).
    """
    with storing(path), writing_whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def writing_whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end of the block, or goes if the block fails.

    Args:
        lasting: have it on the disk before it takes the place; what can be made again does without, for that is slow.

    Raises:
        OSError: it cannot be written; `storing` has the words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=WRITING)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if lasting:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write into a folder; call it while nobody else can be writing there."""
    for leftover in folder.glob(f"{WRITING}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """What fails inside is said as a `StorageError` about `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or type(error).__name__}; free some space or choose a folder that "
            "can be written; what was written before is kept, and the same command continues"
        ) from error


def sha256(data: bytes | str) -> str:
    """SHA-256 (hex) of bytes, or of a text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys; what JSON has not is taken as its text."""
    return sha256(json.dumps(value, sort_keys=True, default=str))
