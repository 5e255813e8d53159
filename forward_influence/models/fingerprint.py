"""One number for everything of a model that decides what it computes, so that results say which model they are about.

Weights alone do not say it: the same weights with another rotary scaling, another epsilon, an adapter switched on or a
quantisation compute other numbers. The fingerprint covers

- names, shapes, types and bytes of all parameters and buffers, those that no checkpoint holds too (rotary frequencies);
- the configuration, less what names a place or a version;
- plain attributes of every module (epsilons, scalings, which adapter is active) and the module's class;
- the source of classes that are neither torch's nor transformers': code that came with a model.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from forward_influence.errors import UsageError
from forward_influence.instrument.compat import SAYS_NOT_WHAT, is_bookkeeping
from forward_influence.utils.files import sha256
from forward_influence.utils.threads import processors

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

#: Attributes of modules that change while a model runs or say how it was made.
_PASSING = frozenset({"training", "gradient_checkpointing", "max_seq_len_cached", "model_tags", "hf_device_map"})
#: Whose classes are known by the versions that manifests and keys of caches name beside the fingerprint.
_LIBRARIES = ("torch", "transformers", "accelerate", "peft")
#: Numbers of each parameter by which a change is noticed.
_SAMPLED = 16


def configuration_of(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration without what decides no number, as JSON holds it."""
    return json.loads(json.dumps(_without(model.config.to_dict()), sort_keys=True, default=str))  # type: ignore[no-any-return]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without(v) for k, v in value.items() if str(k) not in SAYS_NOT_WHAT}
    return [_without(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 sums (hex) of a model.

    Attributes:
        weights: of names, shapes, dtypes and bytes of parameters and persistent buffers: what a checkpoint holds, the
            same whatever the version of transformers.
        whole: of everything, see the module; classes and settings have other names in other versions.
    """

    weights: str
    whole: str


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """What a model is, in numbers.

    The same checkpoint loaded in another dtype has another fingerprint: other numbers are computed with. Tensors are
    hashed side by side (hashlib lets go of the interpreter lock): 0.2 s for 540 MB on two cores.
    """
    kept = model.state_dict(keep_vars=True)
    weights = _digest_of({name: _real(model, name, tensor) for name, tensor in kept.items()})
    passing = {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in kept}
    rest = _digest_of({name: _real(model, name, buffer) for name, buffer in passing.items()})
    return Fingerprint(weights, sha256("\n".join([weights, rest, _settings(model)])))


def _digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of named tensors; each one's bytes are hashed once, under however many names."""
    unique = {_identity(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor(max_workers=processors()) as pool:
        digests = dict(zip(unique, pool.map(_digest, unique.values()), strict=True))
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|{digests[_identity(tensor)]}\n".encode())
    return state.hexdigest()


def mark(model: PreTrainedModel) -> str:
    """A number that changes when a model's settings or parameters do; milliseconds, for only a few bytes are read.

    It holds within one process only. Changes that torch does not count (`weight.data += ...`) show in a sample of each
    parameter's numbers.
    """
    state = hashlib.sha256(_settings(model).encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state.update(f"{name}|{parameter.device}|{parameter.dtype}".encode())
        if parameter.device.type == "meta":  # accelerate brings those in when they are needed
            continue
        version = -1 if parameter.is_inference() else parameter._version
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)].tolist()
        state.update(f"{parameter.data_ptr()}|{version}|{sample}".encode())
    return state.hexdigest()


def _settings(model: PreTrainedModel) -> str:
    """Configuration, modules and foreign code as one text."""
    parts = [json.dumps(configuration_of(model), sort_keys=True)]
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        parts.append(f"{name}|{kind.__module__}.{kind.__qualname__}|{_plain(module)}")
        if kind.__module__.partition(".")[0] not in _LIBRARIES:
            parts.append(_source_digest(kind))
    return "\n".join(parts)


@cache
def _base_attributes() -> frozenset[str]:
    from torch import nn

    return frozenset(vars(nn.Module()))


def _plain(module: nn.Module) -> str:
    """The attributes of a module that are plain values, as JSON."""
    from transformers import PreTrainedModel

    found = {}
    for name, value in vars(module).items():
        if name in _PASSING or name in _base_attributes() or is_bookkeeping(name, isinstance(module, PreTrainedModel)):
            continue
        if _is_plain(value):
            found[name] = sorted(map(str, value)) if isinstance(value, set | frozenset) else value
    return json.dumps(found, sort_keys=True, default=str)


def _is_plain(value: Any, depth: int = 2) -> bool:
    if isinstance(value, bool | int | float | str | None):
        return True
    if depth and isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(v, depth - 1) for v in value)
    if depth and isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v, depth - 1) for k, v in value.items())
    return False


def _source_digest(kind: type) -> str:
    """SHA-256 of the file that defines a class."""
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):  # typed into a session
        source = ""
    return sha256(source)


def _real(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with its values, which accelerate keeps elsewhere where a model is spread over devices and disk."""
    if tensor.device.type != "meta":
        return tensor
    owner, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(owner), "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            return weights[own]  # type: ignore[no-any-return]
    raise UsageError(f"the weights {name} lie nowhere that they could be read from")


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _digest(tensor: torch.Tensor) -> str:
    from forward_influence.utils.numerics import raw_bytes

    return hashlib.sha256(raw_bytes(tensor)).hexdigest()
