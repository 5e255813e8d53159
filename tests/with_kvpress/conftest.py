"""Tests that need kvpress and so transformers below 5.3: `make test-kvpress` makes the environment for them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

#: Without kvpress the files here cannot even be read; test_kvpress_absent.py tests what happens then.
collect_ignore_glob = [] if find_spec("kvpress") else ["test_*.py"]
