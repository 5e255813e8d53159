"""Wheels that hold a tiny GGUF file, what a catalogue would pin of them, and a converter that needs no model."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from forward_influence.models.catalog import NamedModel, Wheel
from forward_influence.utils.progress import Progress

FILE = "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/tiny.gguf"
INFORMATION = "tiny_model-1.0.dist-info"


def write_wheel(folder: Path, members: dict[str, bytes], file: str = FILE) -> Wheel:
    """A valid wheel with these members, and what a catalogue would pin."""
    folder.mkdir(exist_ok=True)
    information = {
        f"{INFORMATION}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n",
        f"{INFORMATION}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, **information}.items():
            archive.writestr(name, data)
        archive.writestr(f"{INFORMATION}/RECORD", b"")
    data = (folder / file).read_bytes()
    return Wheel("tiny-model", "1.0", file, hashlib.sha256(data).hexdigest(), len(data), next(iter(members)))


def describe(content: bytes, *wheels: Wheel) -> NamedModel:
    return NamedModel(
        name="tiny",
        title="Tiny",
        hub="org/tiny",
        licence="none",
        note="float32 GGUF",
        size=1,
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        gguf_size=len(content),
        wheels=wheels,
    )


CONTENT = b"GGUF and some bytes " * 1000


class Converter:
    """Writes what a converted model consists of, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gguf: Path, folder: Path, progress: Progress) -> None:
        self.calls += 1
        assert gguf.read_bytes() == CONTENT
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
