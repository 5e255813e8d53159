"""Shared by all tests: no network, helpers of all rooms, and rules that do not outlive their file of tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: Helpers lie here, and some tests use those of another room.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(room) for room in sorted(HERE.iterdir()) if any(room.glob("test_*.py")))]

_REGISTRY = "forward_influence.selectors.registry"


@pytest.fixture(autouse=True, scope="module")
def _rules_stay_where_they_are_registered() -> Iterator[None]:
    """What a file of tests registers, by itself or by a rule file that it names, is unknown to the next one."""
    registered, files = _own_rules(), _rule_files()
    yield
    for name in _own_rules() - registered:
        del sys.modules[_REGISTRY]._rules[name]
    for name in _rule_files() - files:
        del sys.modules[name]


def _own_rules() -> set[str]:
    """Names of registered rules that are none of this package's; the registry is looked at only where it is loaded."""
    rules = sys.modules[_REGISTRY]._rules if _REGISTRY in sys.modules else {}
    return {name for name, rule in rules.items() if not rule.__module__.startswith("forward_influence.")}


def _rule_files() -> set[str]:
    return {name for name in sys.modules if name.startswith("forward_influence_rules_")}
