"""How many tokens go through the model for a document, part by part: for progress, and for what a run will cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from forward_influence.data.cutting import Cut
from forward_influence.errors import UsageError
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.controls import NOISE_POSITIONS, POSITIVE_POSITIONS, WIDE
from forward_influence.measurement.positions import measured_positions
from forward_influence.measurement.request import Request
from forward_influence.tracing.signals.gradients import closing_zones, fisher_zones, label_samples
from forward_influence.utils.distances import zones


def measured_count(request: Request) -> int:
    """At how many positions of a segment's continuation conditions are measured."""
    sampled = measured_positions(request, request.continuation, "", 0)
    return request.continuation if sampled is None else len(sampled)


def floor_runs(request: Request, itemsize: int = WIDE) -> list[tuple[int, int]]:
    """(tokens that run, positions that are compared) of each noise floor of a document.

    Args:
        itemsize: bytes of a number in the model's dtype.
    """
    m = request.continuation
    if itemsize >= WIDE:
        return [(min(NOISE_POSITIONS, m),) * 2] * len(request.effects)
    compared = measured_count(request)
    return [(effect.runs(m, compared), compared) for effect in request.effects] * request.segments


def document_tokens(request: Request, full_layers: Sequence[int] = (), itemsize: int = WIDE) -> int:
    """Forward tokens that one document costs, for progress; `itemsize` as in `floor_runs`."""
    m = request.continuation
    controls = min(POSITIVE_POSITIONS, m) * len(request.effects)
    controls += sum(tokens for tokens, _ in floor_runs(request, itemsize))
    measured = measured_count(request)
    per_segment = request.context + m
    for condition in expand(request, "", 0, full_layers):
        per_segment += (request.context if condition.reads_context else 0) + condition.effect.runs(m, measured)
    generated = m * request.segments if request.continuation_from == "generate" else 0
    return request.segments * (per_segment + gradient_tokens(request)) + controls + generated


def run_tokens(
    request: Request, documents: Iterable[Cut], full_layers: Sequence[int] = (), itemsize: int = WIDE
) -> int:
    """`document_tokens` of several documents, each as long as it is; one whose spans cannot be measured costs none."""
    if not request.is_unplaced:
        return len(list(documents)) * document_tokens(request, full_layers, itemsize)
    total = 0
    for document in documents:
        with suppress(UsageError):
            total += document_tokens(request.at(document.layout), full_layers, itemsize)
    return total


def gradient_tokens(request: Request) -> int:
    """Tokens of the backward passes that rules need which look ahead."""
    needs, ends, m = request.needs, zones(request.continuation), request.continuation
    sampled, closed = fisher_zones(needs), closing_zones(needs)
    fisher = m + sum(ends[zone][1] for zone in sampled) * label_samples(needs) if sampled else 0
    closing = 2 * m + sum(ends[zone][1] for zone in closed) if closed else 0
    return fisher + closing
