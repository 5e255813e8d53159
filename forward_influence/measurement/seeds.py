"""Seeds of everything random, the same on every machine."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:7], "big")
