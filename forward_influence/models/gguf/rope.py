"""Rotary positions as a GGUF file states them, as the `rope_parameters` of a transformers configuration.

The file spreads them over keys (`ARCH.rope.*`) and over tensors: Llama 3's scaling and LongRoPE's factors are stored as
numbers by which each frequency is divided. What transformers cannot express is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forward_influence.models.gguf.header import Header

#: Tensors that hold frequency factors rather than weights.
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
#: Scaling of Llama 3.1 and later; the largest factor is stored, these are not.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_THETA = 10000.0


def rope_parameters(header: Header, arch: str, head_dim: int, partial: bool = False) -> dict[str, Any]:
    """The rotary parameters of the full-attention layers.

    Args:
        arch: the prefix of the file's keys.
        head_dim: entries of a head.
        partial: whether the architecture can rotate a part of each head only.

    Raises:
        UsageError: a kind of scaling that transformers has no counterpart of.
    """
    rotated = header.get(f"{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim and not (partial and 0 < rotated < head_dim):
        raise header.refusal(f"{arch}.rope.dimension_count", rotated, f"where heads of {head_dim} are rotated whole")
    found: dict[str, Any] = {"rope_theta": header.get(f"{arch}.rope.freq_base", _THETA)}
    if partial:
        found["partial_rotary_factor"] = rotated / head_dim
    return found | _scaling(header, arch, found["rope_theta"], rotated)


def _scaling(header: Header, arch: str, theta: float, rotated: int) -> dict[str, Any]:
    at = f"{arch}.rope.scaling"
    header.get(f"{at}.finetuned")  # says how the model came to be, not what it computes
    original = header.get(f"{at}.original_context_length", header.get(f"{arch}.context_length"))
    factor = header.get(f"{at}.factor") or header.get(f"{arch}.rope.scale_linear") or 1.0
    attention = header.get(f"{at}.attn_factor", 1.0)
    kind = header.get(f"{at}.type", "linear")
    stored = [name for name in FACTORS if name in header.tensors]
    if kind == "longrope" or stored[-1:] == [FACTORS[2]]:
        header.expect(f"{at}.type", "linear", "none", "longrope")
        return _longrope(header, arch, factor, original)
    if stored:
        header.expect(f"{at}.type", "linear", "none")
        factors = header.tensor(FACTORS[0])
        if factor != 1.0 or stored != [FACTORS[0]]:
            raise header.refusal(f"{at}.factor", factor, f"beside {' and '.join(stored)}")
        _plain(header, at, attention)
        return _llama3(header, factors, theta, rotated)
    if kind == "yarn":
        return _yarn(header, at, factor, original, attention)
    header.expect(f"{at}.type", "linear", "none")
    _plain(header, at, attention)
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _plain(header: Header, at: str, attention: float) -> None:
    """Refuse the keys of other kinds of scaling where they would have an effect."""
    if not math.isclose(attention, 1.0, rel_tol=1e-6):
        raise header.refusal(f"{at}.attn_factor", attention, "without the scaling that it belongs to")
    header.expect(f"{at}.alpha", 0.0)
    header.expect(f"{at}.yarn_ext_factor", 0.0, -1.0)
    header.expect(f"{at}.yarn_attn_factor", 1.0)
    for name in ("beta_fast", "beta_slow", "log_multiplier"):  # nothing reads them where nothing is extrapolated
        header.get(f"{at}.yarn_{name}")


def _yarn(header: Header, at: str, factor: float, original: int, attention: float) -> dict[str, Any]:
    """Correction ranges are rounded to whole dimensions, and the magnitude follows from the factor."""
    magnitude = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    stated = header.get(f"{at}.yarn_attn_factor", magnitude)
    if not math.isclose(stated, magnitude, rel_tol=1e-6):
        # Converters write transformers' attention_factor under this key, llama.cpp computes another number.
        raise header.refusal(f"{at}.yarn_attn_factor", stated, f"where a factor of {factor:g} gives {magnitude:g}")
    header.expect(f"{at}.alpha", 0.0)
    header.expect(f"{at}.yarn_ext_factor", 1.0, -1.0)
    header.expect(f"{at}.yarn_log_multiplier", 0.0)
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": header.get(f"{at}.yarn_beta_fast", 32.0),
        "beta_slow": header.get(f"{at}.yarn_beta_slow", 1.0),
    }
    if not math.isclose(attention, 1.0, rel_tol=1e-6):
        found["attention_factor"] = magnitude * attention
    return found


def _longrope(header: Header, arch: str, factor: float, original: int) -> dict[str, Any]:
    at = f"{arch}.rope.scaling"
    missing = [name for name in FACTORS[1:] if name not in header.tensors]
    if missing or FACTORS[0] in header.tensors or factor != 1.0:
        what = f"without the tensor {missing[0]}" if missing else "beside another kind of scaling"
        raise header.refusal(f"{at}.type", header.get(f"{at}.type", "longrope"), what)
    _plain(header, at, 1.0)
    return {
        "rope_type": "longrope",
        "long_factor": _numbers(header.tensor(FACTORS[1])),
        "short_factor": _numbers(header.tensor(FACTORS[2])),
        "original_max_position_embeddings": original,
        "attention_factor": _magnitude(header, arch, original),
    }


def _magnitude(header: Header, arch: str, original: int) -> float:
    """What LongRoPE multiplies its cosines with: the file's number, in full precision where it is the usual one."""
    scale = header.require(f"{arch}.context_length") / original
    if scale <= 1:
        return float(header.get(f"{arch}.rope.scaling.attn_factor", 1.0))
    stated = float(header.require(f"{arch}.rope.scaling.attn_factor"))
    usual = math.sqrt(1 + math.log(scale) / math.log(original))
    return usual if math.isclose(usual, stated, rel_tol=1e-6) else stated


def _llama3(header: Header, factors: NDArray[np.float32], theta: float, rotated: int) -> dict[str, Any]:
    """The scaling of Llama 3 that gives these factors: the largest is its own, the rest is the same in all models."""
    if np.array_equal(factors, np.ones_like(factors)):
        return {"rope_type": "default"}
    factor = float(factors.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    low, high, original = _LLAMA3.values()
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if factors.shape != wavelengths.shape or not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-5):
        raise header.refusal(FACTORS[0], _numbers(factors), "factors which are not those of Llama 3's scaling")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _numbers(values: NDArray[np.float32]) -> list[float]:
    """Float32 numbers as the shortest decimals that name them, as a configuration would write them."""
    return [float(str(value)) for value in values.astype(np.float32)]
