"""How large values are once they reach the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


def output_norms(trace: Trace, layer: int, order: int) -> Tensor:
    """||W_O v_j|| of the index-th layer, W_O the part of its output projection that belongs to a query head.

    Args:
        order: of the norm, 1 or 2.

    Returns:
        (kv_heads, group, tokens), at least float32.
    """

    def compute() -> Tensor:
        values = at_least_float32(trace.attended(layer)[1])
        matrices = trace.signal("output_projection").matrix(trace.layers[layer])
        group = len(matrices) // len(values)
        rows = [
            torch.linalg.vector_norm(values[head // group] @ matrix.to(values), ord=order, dim=-1)
            for head, matrix in enumerate(matrices)
        ]
        return torch.stack(rows).unflatten(0, (1, -1) if trace.latent else (len(values), group))

    norms: Tensor = trace.memo(("output norms", layer, order), compute)
    return norms
