"""Which documents are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.utils.configuration import BASICS, Configuration, described, option


@described
@dataclass(frozen=True)
class Asked(Configuration):
    """Documents, and how many of them."""

    documents: tuple[str, ...] = option(
        ("sotu",), "sotu, reasoning-traces, a text file, a folder, file.jsonl:field, hf:...; repeatable.", BASICS
    )
    max_documents: int | None = option(None, "Take so many documents.", BASICS, shown="all")
    sample: str | None = option(None, "Draw so many (10) or such a part (0.1) of the documents.", BASICS, shown="all")
