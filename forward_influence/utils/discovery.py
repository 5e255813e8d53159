"""Things that are a file each of one folder: found by looking, so that a new one is in no list."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def module_names(package: ModuleType) -> tuple[str, ...]:
    """The names of a package's modules; none of them is loaded."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def load_modules(package: ModuleType) -> None:
    """Import every module of a package, so that what they register is known."""
    for name in module_names(package):
        importlib.import_module(f"{package.__name__}.{name}")
