"""Influence of any number of selections from one set of gradients, without a forward pass each.

KL summed over a bin, of removing a set S of entries, is about 1/2 mean (sum_{j in S} g_j)^2 over label samples, g the
gradients of `gradients.continuation_gradients`. A local estimate: exact for small changes of attention, and for whole
selections a ranking rather than a value. One more selection costs a sum over its entries.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.conditions import Condition, derived_seed, expand, sliced
from forward_influence.document import CutDocument
from forward_influence.gradients import continuation_gradients
from forward_influence.influence import measure_ablations, removal
from forward_influence.models import Model
from forward_influence.progress import Progress
from forward_influence.recording import record
from forward_influence.request import Request
from forward_influence.selection import Selection
from forward_influence.selectors import chosen, final_scores
from forward_influence.trace import Trace
from forward_influence.zones import zones


@dataclass(frozen=True)
class Screened:
    """One condition in one bin of one segment.

    Attributes:
        condition: rule, budget and draw.
        bin, low, high: the bin's name and its distances.
        estimates: mean KL over the bin in nats, one estimate per label sample, (samples,) float64.
        exact: the measured mean KL, where asked for.
        seconds: that the estimates of all bins took; `exact_seconds`: that measuring took, averaged over conditions.
    """

    document: str
    segment: int
    condition: Condition
    bin: str
    low: int
    high: int
    estimates: Tensor
    seconds: float
    exact: float | None = None
    exact_seconds: float | None = None

    @property
    def estimate(self) -> float:
        """The mean over label samples."""
        return float(self.estimates.mean())


def set_estimates(gradients: Tensor, removed: Tensor, size: int) -> Tensor:
    """Mean KL over a bin of `size` positions when a set is removed, one estimate per label sample, (samples,) float64.

    Args:
        gradients: (samples, L, H, n) of the bin.
        removed: (L, H, n) bool.
    """
    total = gradients.flatten(1).double() @ removed.flatten().to(gradients.device).double()
    return total.square() / (2 * size)


def screen_document(
    model: Model,
    document: CutDocument,
    request: Request,
    samples: int,
    *,
    bins: Mapping[str, tuple[int, int]] | None = None,
    exact: bool = False,
    chunk: int = 512,
    progress: Progress | None = None,
) -> tuple[list[Screened], dict[str, float]]:
    """Every condition of a request, estimated; with `exact`, measured too.

    Args:
        samples: of labels.
        bins: name -> (first, behind the last) distance; default near, middle, far.

    Returns:
        The estimates, and seconds by part: "context", "gradients" (once for all rules).
    """
    found: list[Screened] = []
    seconds = {"context": 0.0, "gradients": 0.0}
    for segment, tokens in enumerate(document.segments):
        context, continuation = tokens[: request.context], tokens[request.context : request.span]
        ends = dict(bins or zones(len(continuation)))
        begun = time.perf_counter()
        candidates = request.candidates
        trace = record(
            model,
            context,
            request.needs,
            span=request.span,
            first=candidates.first,
            last=candidates.last,
            chunk=chunk,
            progress=progress,
        )
        seconds["context"] += time.perf_counter() - begun
        begun = time.perf_counter()
        seed = derived_seed(request.seed, document.document.fingerprint, segment, "screen")
        gradients = continuation_gradients(model, trace, continuation, ends, samples, seed, progress=progress)
        if request.needs.gradients:  # an oracle has labels of its own: the estimate must not judge its own noise
            own = derived_seed(request.seed, document.document.fingerprint, segment, "labels")
            wanted = {k: v for k, v in zones(len(continuation)).items() if k in request.needs.zones}
            trace.future = continuation_gradients(
                model, trace, continuation, wanted, request.needs.gradients, own, progress=progress
            )
        seconds["gradients"] += time.perf_counter() - begun
        conditions = expand(request, document.document.fingerprint, segment, trace.layers)
        parts: list[Selection] = []
        first = len(found)
        for condition in conditions:
            number = candidates.to_choose(condition.budget, request.mode)
            scores = final_scores(condition.rule, trace)
            mask = chosen(condition.rule, trace, scores, number, request.mode)
            removed = sliced(Selection(mask, trace.layers), request.mode, condition.layers, request.heads).removed
            parts.append(removed)
            begun = time.perf_counter()
            values = {
                name: set_estimates(gradients[name], removed.mask, high - low) for name, (low, high) in ends.items()
            }
            spent = time.perf_counter() - begun
            found += [
                Screened(document.document.name, segment, condition, name, *ends[name], values[name].cpu(), spent)
                for name in ends
            ]
        if exact:
            _add_exact(model, trace, continuation, conditions, parts, found, first, len(ends), chunk, progress)
    return found, seconds


def _add_exact(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    conditions: list[Condition],
    parts: list[Selection],
    found: list[Screened],
    first: int,
    bins: int,
    chunk: int,
    progress: Progress | None,
) -> None:
    """Measure every condition and write the bins' means into `found` from `first` on."""
    m = len(continuation)
    begun = time.perf_counter()
    ablations = [
        removal(trace, part, "drop", m, condition.label, direct=condition.effect == "direct")
        for condition, part in zip(conditions, parts, strict=True)
    ]
    _, influences = measure_ablations(model, trace, continuation, ablations, chunk=chunk, progress=progress)
    spent = (time.perf_counter() - begun) / max(1, len(conditions))
    for i, influence in enumerate(influences):
        for j in range(first + i * bins, first + (i + 1) * bins):
            one = found[j]
            mean = float(influence.kl[one.low : one.high].double().mean())
            found[j] = dataclasses.replace(one, exact=mean, exact_seconds=spent)


def token_leave_one_out(gradients: Tensor, size: int) -> Tensor:
    """Estimated mean KL over a bin of removing each token from all layers and heads, (n,) float64.

    Args:
        gradients: (samples, L, H, n) of the bin.
        size: positions of the bin.
    """
    return gradients.double().sum((1, 2)).square().mean(0) / (2 * size)


def leave_one_out_masks(shape: tuple[int, int, int], tokens: range) -> list[Tensor]:
    """The masks (L, H, n) of removing each of `tokens` alone from all layers and heads."""
    masks = []
    for token in tokens:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[..., token] = True
        masks.append(mask)
    return masks
