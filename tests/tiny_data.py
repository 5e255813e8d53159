"""A tiny model and documents that are ready to be measured, without text or tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import tiny_model
from torch import Tensor

from forward_influence.data.spans import Layout
from forward_influence.models.loading import Model, wrap_model


@dataclass(frozen=True)
class Named:
    name: str
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    document: Named
    segments: tuple[Tensor, ...]
    length: int = 0
    layout: Layout | None = None


def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> Model:
    return wrap_model(tiny_model(family, dtype), spec=f"tiny-{family}")


def documents(count: int, length: int, segments: int = 1) -> list[Cut]:
    made = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        pieces = tuple(torch.randint(3, 97, (length,), generator=generator) for _ in range(segments))
        digest = hashlib.sha256(str([p.tolist() for p in pieces]).encode()).hexdigest()
        made.append(Cut(Named(f"doc {i}/../x", digest), pieces, length))
    return made
