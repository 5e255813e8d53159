"""The cache of converted models: where it is, what each folder must hold, and how a damaged one is noticed.

    <cache>/models/NAME/manifest.json     which source it was made from, and the SHA-256 of every other file
    <cache>/models/NAME/...               config.json, model.safetensors, tokenizer.json, ...

A folder is renamed into place whole, so a half-finished one is never seen under its name. Every file is hashed at every
load (0.35 s for 540 MB): modification times do not change when a bit on a disk does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.models.catalog import NamedModel
from forward_influence.storage.manifest import MANIFEST
from forward_influence.utils.files import file_sha256, write_whole
from forward_influence.utils.paths import cache_folder

#: Raised when the conversion changes its outcome, so that older conversions are redone.
CONVERSION = 2


def model_folder(name: str) -> Path:
    """Where the converted named model `name` lies, pulled or not."""
    return cache_folder() / "models" / name


def write_manifest(folder: Path, model: NamedModel, record: Mapping[str, Any]) -> None:
    """Describe the files of `folder` in its manifest, with `record` (versions, say) beside them."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    files = {path.name: {"sha256": file_sha256(path), "size": path.stat().st_size} for path in paths}
    manifest = {
        "conversion": CONVERSION,
        "name": model.name,
        "gguf_sha256": model.gguf_sha256,
        "files": files,
        **record,
    }
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def problem(model: NamedModel, *, full: bool = True) -> str | None:
    """What is wrong with the cached model, in a few words; None where nothing is.

    Args:
        full: hash every file; otherwise only names and sizes are compared.
    """
    try:
        return _problem(model_folder(model.name), model, full)
    except OSError as error:
        return f"it cannot be read ({error.strerror or type(error).__name__})"


def _problem(folder: Path, model: NamedModel, full: bool) -> str | None:
    if not folder.is_dir():
        return "not pulled"
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        made_from = (manifest["conversion"], manifest["name"], manifest["gguf_sha256"])
        files = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "its manifest does not read back"
    if made_from != (CONVERSION, model.name, model.gguf_sha256):
        return "it was converted from another file or by an older version"
    if not {"config.json", "tokenizer.json"} <= files.keys() or not any(n.endswith(".safetensors") for n in files):
        return "its manifest lacks files"
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    if present != files.keys():
        return f"{sorted(present ^ files.keys())[0]} is {'missing' if files.keys() - present else 'not part of it'}"
    for name, (sha256, size) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or (full and file_sha256(path) != sha256):
            return f"{name} differs from what was written"
    return None


def checked_folder(model: NamedModel) -> Path:
    """The folder of a named model, every byte of it as it was written.

    Raises:
        UsageError: it was never pulled.
        ForwardInfluenceError: it is damaged.
    """
    wrong = problem(model)
    pull = f"forward-influence models pull {model.name}"
    if wrong == "not pulled":
        raise UsageError(f"the model {model.name} is not here yet: run `{pull}` ({model.download / 1e6:.0f} MB)")
    if wrong:
        raise ForwardInfluenceError(f"the cached model {model.name} is damaged: {wrong}; `{pull}` makes it anew")
    return model_folder(model.name)
