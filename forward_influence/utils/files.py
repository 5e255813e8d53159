"""Writing files whole or not at all, and failures of the file system in words."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forward_influence.errors import StorageError

#: What the names of half-written files begin with.
WRITING = ".writing-"


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds all of it or the file as it was before.

    Raises:
        StorageError: it cannot be written (disk full, no permission, ...).
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=WRITING)
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
