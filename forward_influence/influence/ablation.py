"""Forward Influence of selections: the KL shift of future next-token distributions when cache entries are removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.direct import direct_hidden
from forward_influence.influence.divergence import Reference
from forward_influence.influence.nonfinite import first_bad_length
from forward_influence.influence.rerotation import close_gaps
from forward_influence.instrument.cache import SelectiveCache, masked
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.lm_head import Head, HeadBuffers, head_rows
from forward_influence.instrument.replay import Entries, continuation_entries, noting
from forward_influence.instrument.rotary_span import changes_with_length
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_tokens, require_known
from forward_influence.selectors.selection import MODES, Selection
from forward_influence.tracing.trace import Trace
from forward_influence.utils.heap import give_back
from forward_influence.utils.numerics import at_least_float32
from forward_influence.utils.progress import Progress, Silent

EFFECTS = ("total", "direct")
#: Bytes of last hidden states held for conditions that wait for the head; more conditions go in several groups.
HIDDEN_BYTES = 1 << 29


@dataclass(frozen=True)
class Influence:
    """What removing one selection did to the continuation, at every position or at an ablation's `positions`.

    Attributes:
        kl: KL(p || q) in nats per continuation position, (m,); distance 0 is the first.
        nll_delta: log p - log q of the token that came next, (m,); NaN at the last position.
        top1_changed: whether the most likely next token changed, (m,) bool.
    """

    kl: Tensor
    nll_delta: Tensor
    top1_changed: Tensor


@dataclass(frozen=True)
class Ablation:
    """One run of a continuation under a changed cache.

    Attributes:
        label: how errors name it.
        branch: makes the cache it runs on, with room for the given number of tokens; None with `hidden`.
        length: how many continuation tokens it covers; the others are left out.
        empty: whether nothing is removed, so that no change is expected.
        positions: distances (p,), ascending, at which it is measured; None: everywhere.
        direct: each position loses its own view of the selection, and nothing else changes.
        hidden: gives the last hidden states (length, hidden) of the continuation by itself, where the cache goes on
            changing while the continuation runs.
        before: tokens that `hidden` runs before the continuation.
    """

    label: str
    branch: Callable[[int], SelectiveCache] | None
    length: int
    empty: bool = False
    positions: Tensor | None = None
    direct: bool = False
    hidden: Callable[[Tensor], Tensor] | None = None
    before: int = 0

    @property
    def runs(self) -> int:
        """How many tokens go through the model."""
        return len(self.positions) if self.direct and self.positions is not None else self.before + self.length

    def distances(self) -> Tensor:
        """(p,) where it is measured."""
        return torch.arange(self.length) if self.positions is None else self.positions


def removal(
    trace: Trace,
    selection: Selection,
    mode: str,
    length: int,
    label: str = "selection",
    positions: Tensor | None = None,
    direct: bool = False,
    rerotate: bool = False,
) -> Ablation:
    """The ablation that removes a selection (drop) or everything else (keep) from the context's cache.

    Args:
        positions, direct: see `Ablation`.
        rerotate: what is kept moves up to the continuation, gaps closed; the trace needs its rotation.

    Raises:
        UsageError: unknown mode, or a selection of another shape than the trace.
    """
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is unknown; it is drop or keep")
    if tuple(selection.mask.shape) != trace.shape or selection.layers != trace.layers:
        raise UsageError(f"{label}: a selection of shape {tuple(selection.mask.shape)} does not fit {trace.shape}")
    kept = selection.kept(mode)

    def branch(room: int) -> SelectiveCache:
        cache = trace.cache.branch(kept, room)
        return close_gaps(cache, trace) if rerotate else cache

    return Ablation(label, branch, length, bool(kept.all()), positions, direct)


def shuffled(
    trace: Trace, length: int, seed: int = 0, direct: bool = False, positions: Tensor | None = None
) -> Ablation:
    """An empty selection whose entries are stored in another order: exact attention is the same, rounding is not.

    Args:
        positions, direct: see `Ablation`.
    """
    order = torch.randperm(trace.n, generator=torch.Generator().manual_seed(seed)).to(trace.tokens.device)
    return Ablation("noise floor", lambda room: trace.cache.branch(None, room, order), length, True, positions, direct)


def measure_ablations(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    ablations: Sequence[Ablation],
    *,
    chunk: int = 512,
    progress: Progress | None = None,
    baseline: Baseline | None = None,
) -> tuple[Tensor, list[Influence]]:
    """The baseline's NLL (m,) and the influence of each ablation at its own positions.

    The continuation runs once in full and once per ablation; only last hidden states are kept, and the head and the
    divergence go over them block by block, so that memory holds no (continuation x vocabulary). Direct effects read
    the full run's keys and values, which are kept for them.

    Args:
        baseline: the full cache's run, from `run_in_full`, where it is known already.

    Raises:
        ForwardInfluenceError: token ids that the model does not know, logits that are NaN or infinite, a continuation
            token or a divergence that words with a logit of minus infinity make impossible, or an ablation that changed
            nothing.
    """
    progress = progress or Silent()
    continuation = checked_tokens(continuation, "the continuation").to(model.device)
    require_known(model, continuation, "the continuation")
    m = int(continuation.shape[0])
    _check_span(model, trace, m)
    targets = torch.cat([continuation[1:], continuation.new_full((1,), -1)])
    with torch.no_grad():
        give_back()  # what recording and choosing left
        if baseline is None:
            baseline = run_in_full(model, trace, continuation, chunk, any(a.direct for a in ablations))
            give_back()
        full, later = baseline.hidden, baseline.entries
        progress.advance(m, "full cache")

        def run(ablation: Ablation) -> Tensor:
            hidden = _run(model, trace, continuation, ablation, later, chunk)
            give_back()
            progress.advance(ablation.runs - _waiting(ablation), ablation.label)
            return hidden

        nll: Tensor | None = None
        influences: list[Influence] = []
        size = max(1, HIDDEN_BYTES // max(1, full.numel() * full.element_size()))
        for start in range(0, max(1, len(ablations)), size):
            group = ablations[start : start + size]
            hidden = [run(a) for a in group]
            found_nll, found = _compare(model.anatomy.head, full, hidden, targets, group, nll is None)
            progress.advance(sum(map(_waiting, group)), "comparing")
            nll = found_nll if nll is None else nll
            influences += found
    assert nll is not None
    if bool(torch.isinf(nll).any()):
        where = int(torch.isinf(nll).nonzero()[0, 0])
        raise ForwardInfluenceError(
            f"the continuation's token {where + 1} is {int(continuation[where + 1])}, a word that the model never "
            "writes (its logit is minus infinity); leave this document out"
        )
    if not bool(torch.isfinite(nll[:-1]).all()):
        whole = shuffled(trace, m)  # in any order: what is looked for is no matter of rounding
        raise ForwardInfluenceError(
            f"the full cache gives NaN or infinite logits at distance {_first_bad(model, trace, continuation, whole)}; "
            "try `dtype` float32, or leave this document out"
        )
    for ablation, influence in zip(ablations, influences, strict=True):
        if bool(torch.isposinf(influence.kl).any()):
            raise ForwardInfluenceError(
                f"{ablation.label}: KL is infinite at distance {_distance(ablation, torch.isposinf(influence.kl))}, "
                "where words become impossible (logits of minus infinity) that the full cache thinks possible; leave "
                "this document out"
            )
        if not bool(torch.isfinite(influence.kl).all()):
            raise ForwardInfluenceError(
                f"{ablation.label}: NaN or infinite logits at distance "
                f"{_bad_distance(model, trace, continuation, ablation, influence)}; try `dtype` float32, or leave this "
                "this document out"
            )
        _check(ablation, influence)
    return nll, influences


def _waiting(ablation: Ablation) -> int:
    """What progress counts for the head and the divergence, which take about so much of the time."""
    return ablation.runs * 3 // 10


def _check_span(model: Model, trace: Trace, m: int) -> None:
    """A window that counted as none because the sequence fits into it must still cover it.

    Raises:
        UsageError: it does not, or positions run out.
    """
    span = trace.n + m
    windows = [model.anatomy.windows[layer] for layer in trace.layers]
    if any(window is not None and window < span for window in windows):
        raise UsageError(
            f"the context was recorded for {trace.span} tokens, context and continuation are {span}, and a window lies "
            f"between; record with span={span}"
        )
    if trace.span is not None and span > trace.span and changes_with_length(model.model, trace.span, span):
        raise UsageError(
            f"the context was recorded for {trace.span} tokens, context and continuation are {span}, for which this "
            f"model's rotary embedding has other factors; record with span={span}"
        )
    positions = model.anatomy.positions
    if positions is not None and span > positions:
        raise UsageError(f"context and continuation have {span} tokens, but the model was made for {positions}")


@dataclass(frozen=True)
class Baseline:
    """The continuation's run under the full cache.

    Attributes:
        hidden: its last hidden states, (m, hidden).
        entries: its keys and values per layer, where direct effects need them; else empty.
    """

    hidden: Tensor
    entries: Entries = ()


def run_in_full(model: Model, trace: Trace, continuation: Tensor, chunk: int, keeps: bool) -> Baseline:
    """Run a continuation (m,) under the whole cache.

    Args:
        keeps: whether direct effects will need its keys and values.
    """
    continuation = continuation.to(model.device)
    m = len(continuation)
    cache = trace.cache.branch(None, m)
    if keeps:
        cache = noting(cache, model.model.config)
    with torch.no_grad(), Instrument(model.model, cache=cache, span=trace.span) as instrument:
        hidden = continuation_hidden(model.model, continuation, instrument, chunk)
    return Baseline(hidden, continuation_entries(cache, m) if keeps else ())


def _run(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    ablation: Ablation,
    later: Entries,
    chunk: int,
) -> Tensor:
    """Last hidden states of an ablation at its positions, (p, hidden)."""
    if ablation.direct:
        assert ablation.branch is not None
        where = ablation.distances().to(continuation.device)
        branch = ablation.branch(0)
        with Instrument(model.model, span=trace.span) as instrument:
            return direct_hidden(model.model, instrument, branch, trace.n, later, continuation, where, chunk)
    length = ablation.length if ablation.positions is None else int(ablation.positions[-1]) + 1
    if ablation.hidden is not None:
        hidden = ablation.hidden(continuation[:length])
    else:
        assert ablation.branch is not None
        with Instrument(model.model, cache=ablation.branch(length), span=trace.span) as instrument:
            hidden = continuation_hidden(model.model, continuation[:length], instrument, chunk)
    return hidden if ablation.positions is None else hidden[ablation.positions.to(hidden.device)]


def _compare(
    head: Head,
    full: Tensor,
    hidden: Sequence[Tensor],
    targets: Tensor,
    ablations: Sequence[Ablation],
    with_nll: bool,
) -> tuple[Tensor | None, list[Influence]]:
    """`compare_hidden`, once for each set of positions; the baseline's NLL comes with those that cover everything."""
    groups: dict[tuple[int, ...] | None, list[int]] = {None: []} if with_nll else {}
    for i, ablation in enumerate(ablations):
        key = None if ablation.positions is None else tuple(ablation.positions.tolist())
        groups.setdefault(key, []).append(i)
    nll: Tensor | None = None
    found: dict[int, Influence] = {}
    for key, members in groups.items():
        rows = slice(None) if key is None else torch.tensor(key, device=full.device)
        some, influences = compare_hidden(head, full[rows], [hidden[i] for i in members], targets[rows])
        nll = some if key is None else nll
        found.update(zip(members, influences, strict=True))
    return nll, [found[i] for i in range(len(ablations))]


def _check(ablation: Ablation, influence: Influence) -> None:
    if not ablation.empty and not bool((influence.kl > 0).any()):
        raise ForwardInfluenceError(
            f"{ablation.label}: the ablation left every logit untouched, which cannot be; nothing is recorded"
        )


def _bad_distance(model: Model, trace: Trace, continuation: Tensor, ablation: Ablation, influence: Influence) -> int:
    """The first distance that is not finite: positions of a direct effect are run each by itself."""
    if ablation.direct or ablation.hidden is not None:
        return _distance(ablation, ~torch.isfinite(influence.kl))
    return _first_bad(model, trace, continuation, ablation)


def _distance(ablation: Ablation, bad: Tensor) -> int:
    """The first distance of an ablation where `bad` (p,) is set."""
    return int(ablation.distances()[bad.nonzero()[0, 0]])


def _first_bad(model: Model, trace: Trace, continuation: Tensor, ablation: Ablation) -> int:
    """The distance of the first continuation token whose states are not finite under an ablation, by shorter runs."""
    total = dataclasses.replace(ablation, direct=False, positions=None)

    def is_finite(length: int) -> bool:
        with torch.no_grad():
            shorter = dataclasses.replace(total, length=length)
            hidden = _run(model, trace, continuation, shorter, (), length)
            logits = model.anatomy.head(hidden[-1:])
            return not bool((torch.isnan(logits) | torch.isposinf(logits)).any()) and bool(torch.isfinite(hidden).all())

    most = int(ablation.distances()[-1]) + 1
    return most - 1 if is_finite(most) else first_bad_length(most, is_finite) - 1


def compare_hidden(
    head: Head, full: Tensor, others: Sequence[Tensor], targets: Tensor, block: int = 0
) -> tuple[Tensor, list[Influence]]:
    """Influence of each of `others` against `full`, from last hidden states, block by block.

    What depends on the full run is computed once per block for all others.

    Args:
        full: (m, hidden).
        others: (length, hidden) each, length <= m.
        targets: (m,) the tokens that came next, negative where there is none.
        block: rows of logits at a time; 0 for `head_rows`.

    Returns:
        The baseline's NLL (m,), NaN where there is no target, and the influences.
    """
    there = head(full[:1]).device  # a model may be spread over several
    full, others, targets = full.to(there), [other.to(there) for other in others], targets.to(there)
    m = len(full)
    dtype = at_least_float32(full[:0]).dtype
    nll = torch.empty(m, dtype=dtype)
    results = [
        Influence(
            torch.empty(len(o), dtype=dtype), torch.empty(len(o), dtype=dtype), torch.empty(len(o), dtype=torch.bool)
        )
        for o in others
    ]
    block = min(block or head_rows(head, full), max(1, m))
    buffers = HeadBuffers(head, full, block)
    for rows in _blocks(m, block):
        reference = Reference(buffers.logits(0, full[rows]), targets[rows], buffers.probabilities)
        nll[rows] = reference.nll().cpu()
        for result, hidden in zip(results, others, strict=True):
            covered = slice(rows.start, min(rows.stop, len(hidden)))  # a shorter run may end within a block
            if covered.start < covered.stop:
                equal = hidden[covered] == full[covered]
                _store(result, covered, reference, buffers.logits(1, hidden[covered]), equal)
    return nll, results


def _store(result: Influence, rows: slice, reference: Reference, logits: Tensor, equal: Tensor) -> None:
    """Compare and keep; where hidden states are equal bit for bit the shift is exactly zero, rounding or not."""
    shift = reference.compare(logits)
    same = equal.all(-1)
    result.kl[rows] = shift.kl.masked_fill(same, 0).cpu()
    nll_delta = torch.where(same & ~torch.isnan(shift.nll_delta), torch.zeros_like(shift.nll_delta), shift.nll_delta)
    result.nll_delta[rows] = nll_delta.cpu()
    result.top1_changed[rows] = (shift.top1_changed & ~same).cpu()


def _blocks(length: int, block: int) -> Iterator[slice]:
    for start in range(0, length, block):
        yield slice(start, min(start + block, length))


def forward_influence(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    selections: Sequence[Selection] | Selection,
    *,
    mode: str = "drop",
    effect: str = "total",
    positions: Tensor | None = None,
    chunk: int = 512,
) -> list[Influence]:
    """Forward Influence of selections on a continuation (arXiv:2606.26875): FI_t(S) = KL(p_t || q_t).

    Args:
        trace: of the context, from `record` with `span` = context + continuation.
        continuation: (m,) token ids that follow the context.
        selections: one or several, from `select`.
        mode: "drop" removes what is selected, "keep" removes everything else.
        effect: "total": the continuation's own entries change too, as they do in generation; "direct": each position
            loses its own view of the selection and nothing else changes.
        positions: (p,) distances at which to measure, ascending; None: all m.
        chunk: tokens per forward pass.

    Returns:
        One `Influence` per selection.
    """
    if effect not in EFFECTS:
        raise UsageError(f"effect {effect!r} is unknown; it is {' or '.join(EFFECTS)}")
    chosen = [selections] if isinstance(selections, Selection) else list(selections)
    m = int(continuation.shape[0])
    direct = effect == "direct"
    if positions is not None and not _ascending(positions, m):
        raise UsageError(f"positions must be distances from 0 to {m - 1}, ascending, each once")
    ablations = [removal(trace, s, mode, m, f"selection {i}", positions, direct) for i, s in enumerate(chosen)]
    return measure_ablations(model, trace, continuation, ablations, chunk=chunk)[1]


def _ascending(positions: Tensor, m: int) -> bool:
    inside = positions.dim() == 1 and len(positions) > 0 and int(positions[0]) >= 0 and int(positions[-1]) < m
    return inside and bool((positions.diff() > 0).all())


def masked_influence(model: Model, tokens: Tensor, trace: Trace, selection: Selection, mode: str) -> Influence:
    """The same by another road: one unchunked pass over context and continuation with removal by masking.

    What `verify` compares with. Memory grows with (context + continuation) squared.
    """
    tokens = tokens.to(model.device)
    n, span = trace.n, int(tokens.shape[0])
    hidden: list[Tensor] = []
    with torch.no_grad(), Instrument(model.model, span=trace.span) as instrument:
        for removed in (torch.zeros_like(selection.mask), ~selection.kept(mode)):
            cache = masked(model.model.config, span, list(removed), after=n)
            instrument.cache = cache
            hidden.append(continuation_hidden(model.model, tokens, instrument, span)[n:])
    targets = torch.cat([tokens[n + 1 :], tokens.new_full((1,), -1)])
    return compare_hidden(model.anatomy.head, hidden[0], hidden[1:], targets)[1][0]


def masked_direct_influence(
    model: Model, tokens: Tensor, trace: Trace, removed: Selection, distances: Tensor
) -> Tensor:
    """KL (p,) of direct effects by what they mean: a full pass per distance, its last token alone blind.

    What `verify` compares with.

    Args:
        tokens: (n + m,) context and continuation.
        removed: what the token at each distance does not see.
        distances: (p,).
    """
    tokens = tokens.to(model.device)
    span = int(tokens.shape[0])
    hidden: list[list[Tensor]] = [[], []]
    with torch.no_grad(), Instrument(model.model, span=trace.span) as instrument:
        for position in (trace.n + distances).tolist():
            for found, gone in zip(hidden, (torch.zeros_like(removed.mask), removed.mask), strict=True):
                instrument.cache = masked(model.model.config, span, list(gone), after=position)
                found.append(continuation_hidden(model.model, tokens[: position + 1], instrument, span)[-1:])
    targets = tokens.new_full((len(distances),), -1)
    full, blind = (torch.cat(parts) for parts in hidden)
    return compare_hidden(model.anatomy.head, full, [blind], targets)[1][0].kl
