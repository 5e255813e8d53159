"""The manifest of a folder of results: how it is made, read and looked through, and whether a request continues it.

A run of `measure` and an evaluation have one each: what was asked (the configuration, whose hash every part carries),
and what it was made with. Only results of one configuration lie in one folder.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from forward_influence.errors import UsageError, steering
from forward_influence.utils.files import WRITING, json_sha256
from forward_influence.utils.versions import LIBRARIES, versions

MANIFEST = "manifest.json"
#: Kinds of results by what a manifest calls them, and what to say to who opens one for another.
_KINDS = {
    None: "is no evaluation but a run of `measure`; give the folder that `evaluate` wrote",
    "evaluation": "is no run but an evaluation; `evaluate` with `results` shows it, `plot` with `kind` retention "
    "draws it",
}
_LONGEST_VALUE = 120  # characters of a value in a message
_MOST_THREADS = 1024


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration, independent of key order."""
    return json_sha256(configuration)


def circumstances(execution: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What a manifest says of how its results are made: versions, execution, command, date.

    Args:
        execution: device, threads and the like.
        command: that makes them; empty for the running one.
    """
    return {
        "versions": versions(),
        "execution": dict(execution),
        "command": command or shlex.join(["forward-influence", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as the bytes of its file."""
    return json.dumps(manifest, indent=1, default=str).encode()


def read_manifest(
    folder: Path,
    schema: int | Collection[int],
    *,
    kind: str | None = None,
    remedy: str,
    wrong: Callable[[Mapping[str, Any]], str | None] = lambda manifest: None,
) -> dict[str, Any]:
    """The manifest of a folder, looked through.

    Args:
        schema: the one that can be read, or several, the newest first.
        kind: of the results; None for a run.
        remedy: what to do where it cannot be used.
        wrong: what else keeps one of this kind from being used, see `wrong_in`.

    Raises:
        UsageError: it cannot be read, is of another kind or an unknown schema, or does not hold what it must.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is not a readable manifest ({error}); {remedy}") from error
    if (other := manifest.get("kind")) != kind and other in [*_KINDS]:
        raise UsageError(f"{folder} {_KINDS[other]}")
    readable = [schema] if isinstance(schema, int) else [*schema]
    if version not in readable:
        raise UsageError(
            f"{folder} was made with schema {version}, this version reads {' and '.join(map(str, readable))}; "
            f"read it with the version named in its manifest, or {remedy}"
        )
    found = "its kind is unknown" if other != kind else wrong_in(manifest) or wrong(manifest)
    if found is None and configuration_hash(manifest["configuration"]) != manifest["configuration_hash"]:
        found = "its configuration was changed"
    if found is not None:
        raise UsageError(f"{path} is not a readable manifest ({found}); {remedy}")
    return manifest


def to_continue(
    path: Path, there: Mapping[str, Any] | None, asked: Mapping[str, Any], *, schema: int, kind: str | None, begun: bool
) -> dict[str, Any] | None:
    """The manifest that a folder gets for a request; None where the one that is there stays, whose results go on.

    Args:
        there: the folder's manifest; None where it has none.
        asked: everything but `kind`, `schema` and `configuration_hash`, which are added.
        begun: whether the folder holds results. Where it holds none, the manifest gives way.

    Raises:
        UsageError: it holds results of another configuration; the fields that differ are named.
    """
    digest = configuration_hash(asked["configuration"])
    if there is not None:
        fields = differences(there, {"configuration_hash": digest, **asked})
        if not fields:
            return None
        if begun:
            raise UsageError(
                f"{path} holds {'a run' if kind is None else f'an {kind}'} of another configuration "
                f"({'; '.join(fields)}); choose another `out`"
            )
    return {**({} if kind is None else {"kind": kind}), "schema": schema, "configuration_hash": digest, **asked}


def refuse_foreign(path: Path, what: str, ours: Collection[str]) -> None:
    """Nothing is written into a folder that holds something else; what a killed start left behind is ours.

    Args:
        what: to say that it is: "no evaluation", say.
        ours: names of files that may lie in a folder before its manifest does.

    Raises:
        UsageError: it is a file, or a folder of something else.
    """
    if not path.exists() or (path / MANIFEST).exists():
        return
    if not path.is_dir() or any(e.name not in ours and not e.name.startswith(WRITING) for e in path.iterdir()):
        raise UsageError(f"{path} exists and is {what}; choose another `out`")


def wrong_in(manifest: Mapping[str, Any]) -> str | None:
    """What keeps a manifest of any kind from being used; None where nothing does."""
    kinds: tuple[tuple[str, type], ...] = (("configuration", dict), ("configuration_hash", str))
    for name, kind in kinds:
        if not isinstance(manifest.get(name), kind):
            return f"no {name.replace('_', ' ')}"
    kinds = (("model", dict), ("skipped", list), ("remarks", list), ("versions", dict), ("command", str))
    for name, kind in kinds:
        if name in manifest and not isinstance(manifest[name], kind):
            return f"its {name} is no {kind.__name__}"
    kinds = (("selectors", list), ("budgets", list), ("context", int), ("continuation", int))
    for key, wanted in kinds:
        value = manifest["configuration"].get(key)
        if value is not None and not isinstance(value, wanted):
            return f"its configuration's {key} is no {wanted.__name__}"
    if character := steering_in(manifest):
        return f"it holds the control character {character}"
    return None


def wrong_in_run(manifest: Mapping[str, Any]) -> str | None:
    """What keeps the manifest of a run from being used beside that; part names must not lead out of the folder."""
    if not isinstance(manifest.get("documents"), list):
        return "no documents"
    return _wrong_documents(manifest["documents"]) or _wrong_execution(manifest.get("execution"))


def steering_in(value: Any) -> str | None:
    """The first character of any text in a JSON value that could steer a terminal, see `errors.steering`."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and (character := steering(value)):
            return character
    return None


def _wrong_documents(documents: list[Any]) -> str | None:
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            return "a document without a name"
        if not isinstance(part := document.get("part"), str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", part):
            return f"the part of document {document['name'][:40]!r} is no file name"
        if not isinstance(document.get("fingerprint"), str):
            return f"document {document['name'][:40]!r} has no fingerprint"
    return None


def _wrong_execution(execution: Any) -> str | None:
    """Chunks and threads are handed to torch as they are, which some numbers bring down."""
    if execution is None:
        return None
    if not isinstance(execution, dict):
        return "its execution is no object"
    for name, most in (("chunk", 1 << 30), ("threads", _MOST_THREADS)):
        value = execution.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            return f"its execution has no usable {name}"
    return None if isinstance(execution.get("device"), str) else "its execution names no device"


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], versions_differ: bool = False) -> list[str]:
    """Sentences naming the fields in which two configurations differ, long values in short.

    Args:
        versions_differ: the two were made under different versions of transformers or torch, whose settings have other
            names: of a model, its weights and the settings that both know must agree then.
    """
    found = _differing(old, new)
    if versions_differ:
        found.pop("model_fingerprint", None)
        found = {
            key: pair for key, pair in found.items() if not (key.startswith("model_configuration.") and None in pair)
        }
    if {"max_documents", "sample", "seed", "documents"} & {*found}:  # then other documents go without saying
        found.pop("document_fingerprints", None)
    if any(key.startswith(("model_configuration.", "model_weights")) for key in found):  # then that goes without saying
        found.pop("model_fingerprint", None)
    return [f"{key}: {_in_short(a)} there, {_in_short(b)} now" for key, (a, b) in found.items()]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`differing_fields` of the configurations of two manifests; empty where results of one continue the other's."""
    if old.get("configuration_hash") is not None and old["configuration_hash"] == new.get("configuration_hash"):
        return []
    before, now = old.get("versions", {}), new.get("versions", {})
    other = any(before.get(name) != now.get(name) for name in LIBRARIES)
    return differing_fields(old["configuration"], new["configuration"], other)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, those within fields with dots between the names."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= _differing(a, b, f"{where}{key}.")
        elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            found[f"{where}{key}"] = a, b
    return found


def _in_short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        value = f"{value[:8]}..."
    text = json.dumps(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{len(value)} of them" if isinstance(value, list | dict) else text[:_LONGEST_VALUE] + "..."
