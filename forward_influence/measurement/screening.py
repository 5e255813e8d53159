"""Influence of any number of selections from one set of gradients, without a forward pass each.

Two ways, each with its gradients by the gates of all entries, summed over the set S that is removed; s positions:

    closing    1/s sum_S a                   `closing.closing_gradients`: the gates of all candidates close together
    fisher     1/(2 s) mean (sum_S g)^2      `gradients.continuation_gradients`: all are open; mean over label samples

One more selection costs a sum over its entries. docs/oracle.md says how well each ranks rules, and why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from forward_influence.attribution.gate_gradients import continuation_gradients
from forward_influence.attribution.integrated_gradients import closing_gradients
from forward_influence.attribution.lookahead import look_ahead
from forward_influence.data.cutting import Cut
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.influence.ablation import removal
from forward_influence.influence.comparison import Influence
from forward_influence.influence.measure import measure_ablations
from forward_influence.instrument.replay import require_replayable
from forward_influence.measurement.conditions import RuleCondition, expand_rules
from forward_influence.measurement.request import Request
from forward_influence.measurement.seeds import derived_seed
from forward_influence.measurement.selection_step import choose_all
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_segments
from forward_influence.selectors.oracle import WAYS
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.distances import zones
from forward_influence.utils.progress import Progress, Silent

MOST_PASSES = 10_000


@dataclass(frozen=True)
class Way:
    """How to estimate.

    Attributes:
        by: "closing" or "fisher".
        count: gate values (closing) or label samples (fisher).
    """

    by: str = "closing"
    count: int = 1

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise UsageError(f"`by` {self.by} is unknown{did_you_mean(self.by, WAYS)}; it is {' or '.join(WAYS)}")
        if not 1 <= self.count <= MOST_PASSES:
            raise UsageError(f"{self.count} {self.counts}, a backward pass each, cannot be; give 1 to {MOST_PASSES}")

    @property
    def counts(self) -> str:
        """What `count` counts."""
        return "gates" if self.by == "closing" else "label samples"

    @property
    def words(self) -> str:
        """How, and with how many: "closing, 1 gate"."""
        return f"{self.by}, {self.count} {self.counts if self.count > 1 else self.counts.removesuffix('s')}"

    def gradients(
        self,
        model: Model,
        trace: Trace,
        continuation: Tensor,
        bins: Mapping[str, tuple[int, int]],
        seed: int,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Bin -> (count, L, H, n)."""
        if self.by == "closing":
            return closing_gradients(model, trace, continuation, bins, self.count, progress=progress)
        return continuation_gradients(model, trace, continuation, bins, self.count, seed, progress=progress)

    def estimates(self, gradients: Tensor, removed: Tensor, size: int) -> Tensor:
        """Mean KL in nats over a bin of `size` positions when a set is removed, one estimate per gate or sample.

        Args:
            gradients: (count, L, H, n) of the bin.
            removed: (L, H, n) bool.

        Returns:
            (count,) float64.
        """
        total = gradients.flatten(1).double() @ removed.flatten().to(gradients.device).double()
        return total / size if self.by == "closing" else total.square() / (2 * size)


@dataclass(frozen=True)
class Screened:
    """One condition in one bin of one segment.

    Attributes:
        condition: rule, budget and draw.
        way: how it was estimated.
        bin, low, high: the bin's name and its distances.
        estimates: mean KL over the bin in nats, one estimate per gate or label sample, (count,) float64.
        exact: the measured mean KL, where asked for.
        seconds: that the estimates of all bins took; `exact_seconds`: that measuring took, averaged over conditions.
    """

    document: str
    segment: int
    condition: RuleCondition
    way: Way
    bin: str
    low: int
    high: int
    estimates: Tensor
    seconds: float
    exact: float | None = None
    exact_seconds: float | None = None

    @property
    def estimate(self) -> float:
        """The mean over gates or label samples."""
        return float(self.estimates.mean())


def screen_document(
    model: Model,
    document: Cut,
    request: Request,
    ways: Sequence[Way] = (Way(),),
    *,
    bins: Mapping[str, tuple[int, int]] | None = None,
    exact: bool = False,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> tuple[list[Screened], dict[str, float]]:
    """Every condition of a request, estimated in each way; with `exact`, measured too.

    Args:
        bins: name -> (first, behind the last) distance; default near, middle, far.

    Returns:
        The estimates, and seconds by part: "context", "ahead" (what oracles read), and each way's gradients by its
        name, once for all rules.

    Raises:
        ForwardInfluenceError: too few tokens, or ids that the model does not know.
        UsageError: no gradients go through the layers of this model.
    """
    require_replayable(model.anatomy.kinds)
    progress = progress or Silent()
    found: list[Screened] = []
    clock: dict[str, float] = {}
    for segment, tokens in enumerate(checked_segments(model, document, request.context, request.continuation)):
        context, continuation = tokens[: request.context], tokens[request.context : request.span]
        ends = dict(bins or zones(len(continuation)))
        candidates, fingerprint = request.candidates, document.document.fingerprint
        earlier = clock.get("context", 0.0)
        with _timed(clock, "context"):
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
        if request.needs.looks_ahead:  # an oracle has labels of its own: the estimate must not judge its own noise
            own = derived_seed(request.seed, fingerprint, segment, "labels")
            with _timed(clock, "ahead"):
                trace.future = look_ahead(model, trace, continuation, request.needs, own, progress=progress)
        conditions = expand_rules(request, fingerprint, segment, trace.layers)
        choices = choose_all(trace, conditions, request, candidates, 0)
        for text in choices.messages(clock["context"] - earlier):
            progress.message(text)
        removed = [choice.part.removed for choice in choices.found]
        exactly: list[Influence] = []
        spent = None
        if exact:
            begun = time.perf_counter()
            exactly = _measured(model, trace, continuation, conditions, removed, chunk, progress)
            spent = (time.perf_counter() - begun) / len(conditions)
        for way in ways:
            seed = derived_seed(request.seed, fingerprint, segment, "screen")
            with _timed(clock, way.by):
                gradients = way.gradients(model, trace, continuation, ends, seed, progress)
            for i, (condition, part) in enumerate(zip(conditions, removed, strict=True)):
                begun = time.perf_counter()
                values = {n: way.estimates(gradients[n], part.mask, high - low) for n, (low, high) in ends.items()}
                took = time.perf_counter() - begun
                for name, (low, high) in ends.items():
                    mean = float(exactly[i].kl[low:high].double().mean()) if exact else None
                    about = (document.document.name, segment, condition, way, name, low, high)
                    found.append(Screened(*about, values[name].cpu(), took, mean, spent))
    return found, clock


def _measured(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    conditions: Sequence[RuleCondition],
    removed: Sequence[Selection],
    chunk: int,
    progress: Progress,
) -> list[Influence]:
    """The influence of every condition."""
    m = len(continuation)
    ablations = [
        removal(trace, part, "drop", m, condition.label, effect=condition.effect)
        for condition, part in zip(conditions, removed, strict=True)
    ]
    return measure_ablations(model, trace, continuation, ablations, chunk=chunk, progress=progress)[1]


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    clock[name] = clock.get(name, 0.0) + time.perf_counter() - begun
