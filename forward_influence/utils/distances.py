"""Bins and zones: the parts of a continuation that results are summed up in, in the engine and in the analysis."""

from __future__ import annotations

#: Bin width of the paper, in tokens (Kai et al. 2026, arXiv:2606.26875).
BIN_WIDTH = 128
#: near = [0, NEAR m), middle = [NEAR m, MIDDLE m), far = [MIDDLE m, m), for a continuation of m tokens.
NEAR = 1 / 8
MIDDLE = 1 / 2
ZONES = ("near", "middle", "far")


def zones(m: int) -> dict[str, tuple[int, int]]:
    """Zone -> (first, behind the last) distance, for a continuation of m >= 3 tokens."""
    near = max(int(m * NEAR), 1)
    middle = max(int(m * MIDDLE), near + 1)
    return {"near": (0, near), "middle": (near, middle), "far": (middle, m)}
