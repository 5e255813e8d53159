"""What a measurement will cost before it is begun: tokens, operations, memory and hours, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.conditions import NOISE_POSITIONS, POSITIVE_POSITIONS, expand
from forward_influence.memory import Peak, Sizes, peak_of_request
from forward_influence.request import Request

#: Operations of the divergence per word of a position, about what its passes over memory cost in matrix operations.
_DIVERGENCE_OPERATIONS = 60


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        documents, conditions: how many, conditions per document and segment.
        tokens: that go through the model, all documents together.
        operations: floating-point operations (a multiplication and an addition are two).
        model_bytes: of the weights on each device.
        memory: the peak above the model.
        hours: on all workers together, None where no throughput is known.
    """

    documents: int
    conditions: int
    tokens: int
    operations: float
    model_bytes: int
    memory: Peak
    hours: float | None


def plan(
    sizes: Sizes,
    request: Request,
    documents: int,
    *,
    chunk: int = 512,
    throughput: float | None = None,
    workers: int = 1,
) -> Plan:
    """Predict the cost of measuring so many documents.

    Args:
        sizes: of the model.
        throughput: operations per second that one worker's device reaches in the model's matrix products.
        workers: documents are spread over so many.
    """
    conditions = len(expand(request, "", 0, tuple(range(sizes.layers))))
    n, m = request.context, request.continuation
    controls = (min(NOISE_POSITIONS, m), min(POSITIVE_POSITIONS, m)) * len(request.effects)
    passes = [*([m] * (conditions + 1) * request.segments), *controls]
    operations = request.segments * (forward_operations(sizes, 0, n) + head_operations(sizes, n))
    for length in passes:
        operations += forward_operations(sizes, n, length) + head_operations(sizes, length)
    operations += _DIVERGENCE_OPERATIONS * sizes.vocabulary * sum(passes)
    if request.continuation_from == "generate":
        operations += request.segments * forward_operations(sizes, n, m)
    rounds = -(-documents // max(1, workers))
    return Plan(
        documents=documents,
        conditions=conditions,
        tokens=documents * (request.segments * n + sum(passes)),
        operations=documents * operations,
        model_bytes=sizes.model_bytes,
        memory=peak_of_request(sizes, request, chunk),
        hours=None if throughput is None else rounds * operations / throughput / 3600,
    )


def forward_operations(sizes: Sizes, before: int, length: int) -> float:
    """Operations of `length` tokens through the body after `before` others: two per weight, and attention."""
    keys = length * before + length * (length + 1) / 2
    return 2.0 * sizes.body_parameters * length + 4.0 * sizes.layers * sizes.query_heads * sizes.head_size * keys


def head_operations(sizes: Sizes, length: int) -> float:
    """Operations of the head on so many tokens."""
    return 2.0 * sizes.head_parameters * length


def measured_throughput(sizes: Sizes, seconds_per_token: float, context: int, length: int) -> float:
    """Operations per second, from the seconds per token of a bare pass with logits over `length` after `context`."""
    done = forward_operations(sizes, context, length) + head_operations(sizes, length)
    return done / (seconds_per_token * length)
