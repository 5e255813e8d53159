"""What one pass over a context recorded, and the full cache's run after it, kept on disk for later runs.

Adding a rule to a run then costs one pass over the continuation per document: neither the context nor the baseline is
run again. An entry belongs to a model (fingerprint and dtype), a device, tokens, chunk size, threads, library versions
and the processor's kind: what it gives is what would be computed, bit for bit. Entries that do not read back are no
entries; the folder is kept below a size, the least recently used go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicCache

from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.layer_kinds import selective
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.states import give_states, states
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import ready_rotation, ready_signals
from forward_influence.tracing.signals import known
from forward_influence.tracing.trace import Trace
from forward_influence.utils.files import remove_unfinished, sha256, writing_whole
from forward_influence.utils.numerics import raw_bytes
from forward_influence.utils.versions import library_versions

if TYPE_CHECKING:
    from forward_influence.models.loading import Model

DEFAULT_LIMIT = 4 * 10**9
#: What layers of a cache hold beside states.
_HELD = ("keys", "values", "indexer_keys")
_FORMAT = 3  # 2: entropy is of its own token; 3: signals by their keys


@dataclass(frozen=True)
class Tensors:
    """Named tensors and a few plain values, as one entry holds them."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class TraceStore:
    """A folder of entries.

    Args:
        folder: made when the first entry is written.
        limit: bytes that it may hold.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str, device: torch.device) -> Tensors | None:
        """An entry, or None where there is none that reads back."""
        path = self._path(key)
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(header["values"])
            if header["digest"] != _tensors_sha256(tensors):
                raise ValueError("its content differs from its digest")
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return Tensors(tensors, values)

    def put(self, key: str, entry: Tensors) -> None:
        """Write an entry, unless it alone is beyond the limit; older ones make room. A disk that is full is no error:
        what is kept here can be computed again."""
        tensors = {name: _whole(tensor) for name, tensor in entry.tensors.items()}
        header = {"values": json.dumps(entry.values), "digest": _tensors_sha256(tensors)}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit:
            return
        path = self._path(key)
        with contextlib.suppress(SafetensorError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                remove_unfinished(self.folder)
                self._make_room(size, path)
                with writing_whole(path, lasting=False) as writing:
                    save_file(tensors, writing, metadata=header)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, size: int, replaced: Path) -> None:
        """Remove the least recently used entries until `size` more bytes fit."""
        entries = [(p, p.stat()) for p in self.folder.glob("*.safetensors") if p != replaced]
        total = sum(status.st_size for _, status in entries)
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime):
            if total + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size


def _whole(tensor: Tensor) -> Tensor:
    """The tensor by itself on the processor: copied where it is part of a larger one."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(raw_bytes(tensor))
    return state.hexdigest()


def trace_key(model: Model, tokens: Tensor, span: int, chunk: int) -> str:
    """The key of a context's trace: everything that decides its bits, the candidates apart."""
    threads = torch.get_num_threads() if model.device.type == "cpu" else 0
    parts = (_FORMAT, model.fingerprint, model.dtype, model.device.type, span, chunk, threads)
    versions = (library_versions(), torch.backends.cpu.get_cpu_capability())
    return _hashed("trace", *parts, *versions, tokens.tolist())


def baseline_key(trace: str, continuation: Tensor) -> str:
    """The key of the full cache's run over a continuation, after the trace with that key."""
    return _hashed("baseline", trace, continuation.tolist())


def written_key(trace: str, count: int, temperature: float, seed: int) -> str:
    """The key of what the model writes after the context of a trace."""
    return _hashed("written", trace, count, temperature, seed)


def _hashed(*parts: object) -> str:
    return sha256("\0".join(map(str, parts)))[:40]


def packed(trace: Trace) -> Tensors:
    """A trace as tensors and values; what looks ahead and what is remembered between rules is left out."""
    tensors: dict[str, Tensor] = {"tokens": trace.tokens}
    layers: list[dict[str, Any]] = []
    for i, layer in enumerate(trace.cache.layers):
        tensors |= {f"states/{i}/{name}": state for name, state in states(layer).items()}
        held = {what: getattr(layer, what, None) for what in _HELD}
        tensors |= {f"{what}/{i}": tensor for what, tensor in held.items() if tensor is not None}
        layers.append({k: v for k, v in vars(layer).items() if isinstance(v, bool | int) and not k.startswith("_")})
    tensors |= {f"sinks/{i}": g.sinks for i, g in enumerate(trace.geometry) if g.sinks is not None}
    if trace.last_hidden is not None:
        tensors["last_hidden"] = trace.last_hidden
    signals: dict[str, str] = {}
    for signal, number in trace.needs.asked:
        key = signal.key(number)
        if signal.kept and signal.origin is not None and key in trace.recorded:
            signals[signal.need(number)] = signal.origin
            tensors |= {f"signals/{key}/{name}": t for name, t in signal.packed(trace.recorded[key]).items()}
    values = {
        "layers": layers,
        "signals": signals,
        "ablatable": list(trace.layers),
        "geometry": [[g.scaling, g.softcap] for g in trace.geometry],
        "biased": trace.position_biased,
        "span": trace.span,
        "kv_heads": trace.kv_heads,
        "query_heads": trace.query_heads,
    }
    return Tensors(tensors, values)


def unpacked(entry: Tensors, model: Model, needs: Needs, first: int, last: int, rotation: bool) -> Trace | None:
    """The trace of an entry, or None where it lacks a signal that is needed.

    Args:
        first, last: the candidates.
        rotation: whether the model's rotary embedding is needed.
    """
    tensors, values = entry.tensors, entry.values
    layers = tuple(values["ablatable"])
    n = int(tensors["tokens"].shape[0])
    wanted = [(signal, number) for signal, number in needs.asked if signal.kept]
    kept = Needs(frozenset(need for need, origin in values["signals"].items() if _is_current(need, origin)))
    if not all(signal.serves(number, kept.numbers(signal.name), n) for signal, number in wanted):
        return None
    rotary = None
    if needs.rotation or rotation:
        rotary = ready_rotation(model.model, tensors["tokens"][:1], layers, values["span"] or n)
    return Trace(
        tokens=tensors["tokens"],
        layers=layers,
        query_heads=values["query_heads"],
        kv_heads=values["kv_heads"],
        first=first,
        last=last,
        cache=_cache(entry, model),
        last_hidden=tensors.get("last_hidden"),
        geometry=[
            Geometry(scaling, softcap, tensors.get(f"sinks/{i}"))
            for i, (scaling, softcap) in enumerate(values["geometry"])
        ],
        position_biased=values["biased"],
        rotation=rotary,
        span=values["span"],
        latent=model.anatomy.latent,
        needs=Needs.merge(kept.texts | needs.texts),
        recorded={
            (key := signal.key(number)): signal.unpacked(_under(tensors, f"signals/{key}/"))
            for signal, number in kept.asked
        }
        | ready_signals(needs, model.model),
    )


def _is_current(need: str, origin: str) -> bool:
    """Whether a signal that was kept is known here, and is what it was."""
    signal = known().get(need.partition(":")[0])
    return signal is not None and signal.origin == origin


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, of one signal or one layer's states, without the prefix."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _cache(entry: Tensors, model: Model) -> SelectiveCache:
    """The cache as it was: our layers, and transformers' own, which hold a window, states or nothing."""
    fresh = DynamicCache(config=text_config(model.model.config)).layers
    layers: list[Any] = []
    for i, scalars in enumerate(entry.values["layers"]):
        layer: Any = selective(fresh[i]) if i in entry.values["ablatable"] else fresh[i]
        give_states(layer, _under(entry.tensors, f"states/{i}/"))
        held = {what: entry.tensors[f"{what}/{i}"] for what in _HELD if f"{what}/{i}" in entry.tensors}
        if isinstance(layer, SelectiveLayer):
            layer.update(held["keys"], held["values"])
            if "indexer_keys" in held:
                layer.indexer_keys = held["indexer_keys"]
        elif "keys" in held:
            layer.lazy_initialization(held["keys"], held["values"])
            vars(layer).update(scalars)
            layer.keys, layer.values = held["keys"], held["values"]
        layers.append(layer)
    return SelectiveCache.of_layers(layers)
