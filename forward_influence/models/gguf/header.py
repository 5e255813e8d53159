"""What a GGUF file says about itself: its keys with their values, and its tensors, read when they are asked for.

The `gguf` package's own reader takes 15 s for the header of a file with 262,000 tokens, because it keeps every string
as arrays of the file; this one takes one second. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forward_influence.errors import ForwardInfluenceError, UsageError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 counted in 32 bits; no file of it is around
_ALIGNMENT = 32
#: struct formats of the value types of fixed size, by their number in the file.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its shape as torch writes it, the number of its ggml type, and where its bytes begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass
class Header:
    """The keys of a GGUF file and its tensors.

    A key that was read counts as understood; `unread` is what nobody asked for, so that nothing is passed over.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Stored]
    _read: set[str] = field(default_factory=set)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`; the key counts as read."""
        self._read.add(key)
        return self.values.get(key, default)

    def require(self, key: str) -> Any:
        """The value of a key that must be there.

        Raises:
            UsageError: it is not.
        """
        if key not in self.values:
            raise UsageError(f"{self.path.name} has no {key}, without which it cannot be read")
        return self.get(key)

    def expect(self, key: str, *allowed: Any) -> None:
        """Read a key whose absence means the same as any of the allowed values.

        Raises:
            UsageError: it is there with another value.
        """
        if (value := self.get(key, allowed[0])) not in allowed:
            raise self.refusal(key, value)

    def refusal(self, key: str, value: Any, why: str = "which is not supported") -> UsageError:
        """The error for a key whose value cannot be carried over."""
        shown = repr(value) if not isinstance(value, list) else f"{value[:4]!r}"[:-1] + (", ...]" if value[4:] else "]")
        return UsageError(
            f"{self.path.name} says {key} = {shown}, {why}: results would be wrong; take the model as safetensors"
        )

    @contextmanager
    def describing(self, what: str) -> Iterator[None]:
        """Turn errors about values of a wrong type or size, wherever they come up, into one about the file.

        Raises:
            UsageError: the header describes nothing of this kind.
        """
        try:
            yield
        except ForwardInfluenceError:
            raise
        except Exception as error:  # libraries' checks of what they are given raise errors of all kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise UsageError(f"{self.path.name}: its header describes no {what} ({reason})") from error

    def unread(self, prefix: str = "") -> list[str]:
        """Keys that begin with `prefix` and that nobody has read."""
        return [key for key in self.values if key.startswith(prefix) and key not in self._read]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, dequantised.

        Raises:
            UsageError: its number format is unknown to the installed gguf package, or the file is cut off.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        stored = self.tensors[name]
        try:
            kind = GGMLQuantizationType(stored.kind)
            shape = quant_shape_to_byte_shape(stored.shape, kind)
            count = math.prod(shape)
            data = np.memmap(self.path, mode="r", dtype=np.uint8, offset=stored.offset, shape=(count,))
            return np.array(dequantize(data.reshape(shape), kind), dtype=np.float32).reshape(stored.shape)
        except (ValueError, NotImplementedError, OSError) as error:
            raise UsageError(f"{self.path.name}: the tensor {name} cannot be read ({error})") from error


def read_header(path: Path) -> Header:
    """The header of a GGUF file; a file that did not change is parsed once.

    Raises:
        UsageError: the file is no GGUF file of a known version, or ends within its header.
    """
    status = path.stat()
    values, tensors = _parsed(path, status.st_mtime_ns, status.st_size)
    return Header(path, values, tensors)


@lru_cache(maxsize=2)
def _parsed(path: Path, changed_ns: int, size: int) -> tuple[dict[str, Any], dict[str, Stored]]:
    try:
        return _Parser(path).parse()
    except (struct.error, ArithmeticError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(f"{path.name} is no whole GGUF file ({error})") from error


class _Parser:
    """Reads a header from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self.data = memoryview(np.memmap(path, mode="r", dtype=np.uint8))  # type: ignore[arg-type]
        self.at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        if bytes(self.data[:4]) != MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self.at = 4
        (version,) = self._numbers("I", 1)
        if version not in _VERSIONS:
            raise ValueError(f"version {version} of the format; {' and '.join(map(str, _VERSIONS))} can be read")
        tensor_count, key_count = self._numbers("Q", 2)
        values: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            (kind,) = self._numbers("I", 1)
            values[key] = self._value(kind)
        places = [self._tensor() for _ in range(tensor_count)]
        alignment = int(values.get("general.alignment", _ALIGNMENT))
        start = -(-self.at // alignment) * alignment
        return values, {name: Stored(shape, kind, start + offset) for name, shape, kind, offset in places}

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        found = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def _string(self) -> str:
        (length,) = self._numbers("Q", 1)
        if length > len(self.data) - self.at:
            raise ValueError("a text of it goes beyond its end")
        text = bytes(self.data[self.at : self.at + length]).decode("utf-8")
        self.at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _FLOAT32:  # the shortest decimal that names it: 1e-05 as a configuration says it, not 9.99999975e-06
            return float(str(np.float32(self._numbers("f", 1)[0])))
        if kind in _FIXED:
            return self._numbers(_FIXED[kind], 1)[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"a value of unknown type {kind}")
        (inner,), (count,) = self._numbers("I", 1), self._numbers("Q", 1)
        if inner in _FIXED:
            return list(self._numbers(_FIXED[inner], count))
        return [self._value(inner) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._numbers("I", 1)
        shape: Sequence[int] = self._numbers("Q", dimensions)
        (kind,), (offset,) = self._numbers("I", 1), self._numbers("Q", 1)
        return name, tuple(reversed(shape)), kind, offset
