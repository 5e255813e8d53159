"""Devices and number formats by the names that people type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forward_influence.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64", "bfloat16", "float16")


def choose_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps"; UsageError if it is not there."""
    import torch

    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        hint = did_you_mean(device, ["auto", "cpu", "cuda", "mps"])
        raise UsageError(f"{device!r} is no device{hint}; use auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False) or (
        chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"this machine has no {device}; use `device` auto or cpu")
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype for "auto" (float32) or one of `DTYPES`; UsageError for others."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return torch.float32
    if name not in DTYPES:
        raise UsageError(f"{name!r} is no dtype for a model{did_you_mean(name, DTYPES)}; use auto, {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen
