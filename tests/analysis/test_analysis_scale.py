"""Analysis at the scale that it promises: 100 documents, 12 conditions, 14,000 positions, with selections."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "analysis_scale.py"


@pytest.mark.slow
def test_a_large_run_is_compared_and_reported_in_two_gigabytes(tmp_path: Path) -> None:
    """How long it takes is the benchmark's to say, with `--limits`, on a quiet machine."""
    command = [sys.executable, str(BENCHMARK), "--selections", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    peaks = [float(peak) for peak in re.findall(r"peak ([\d.]+) GB", done.stdout)]
    assert len(peaks) >= 2 and max(peaks) < 2, done.stdout
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
