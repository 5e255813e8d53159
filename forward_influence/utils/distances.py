"""Near, middle and far: the parts of a continuation that results are summed up in."""

from __future__ import annotations

#: near = [0, m / 8), middle = [m / 8, m / 2), far = [m / 2, m), as in the analysis.
NEAR = 1 / 8
MIDDLE = 1 / 2
ZONES = ("near", "middle", "far")


def zones(m: int) -> dict[str, tuple[int, int]]:
    """Zone -> (first, behind the last) distance, for a continuation of m >= 3 tokens."""
    near = max(int(m * NEAR), 1)
    middle = max(int(m * MIDDLE), near + 1)
    return {"near": (0, near), "middle": (near, middle), "far": (middle, m)}
