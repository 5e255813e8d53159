"""Shared by all tests: one thread by default, so that results and timings do not depend on the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: Helpers lie here, and some tests use those of another room.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(room) for room in sorted(HERE.iterdir()) if any(room.glob("test_*.py")))]
