"""Versions of what decides the numbers."""

from __future__ import annotations

import platform
from importlib.metadata import version

#: Libraries in whose versions a model's own classes, settings and rounding differ.
LIBRARIES = ("torch", "transformers")


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that numbers pass through."""
    from forward_influence import __version__

    others = ("tokenizers", "numpy", "pyarrow")
    found = {"forward_influence": __version__, "python": platform.python_version()}
    return found | {name: version(name) for name in (*LIBRARIES, *others)}


def library_versions() -> dict[str, str]:
    """Of `LIBRARIES` alone."""
    return {name: version(name) for name in LIBRARIES}
