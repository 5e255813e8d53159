"""Numbers that several rooms take where nothing else is asked for."""

from __future__ import annotations

#: Tokens per forward pass. Rounding depends on it, and so do the last digits of every result.
CHUNK = 512
