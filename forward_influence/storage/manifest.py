"""What a manifest must look like to be used, and in what two configurations differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from forward_influence.errors import steering
from forward_influence.utils.versions import LIBRARIES

_LONGEST_VALUE = 120  # characters of a value in a message
_MOST_THREADS = 1024


def wrong_in(manifest: Any) -> str | None:
    """What keeps a manifest from being used; None where nothing does. Part names must not lead out of the folder."""
    if not isinstance(manifest, dict):
        return "no object"
    kinds: tuple[tuple[str, type], ...]
    kinds = (("configuration", dict), ("configuration_hash", str), ("documents", list))
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
