"""Forward Influence of selections: the KL shift of future next-token distributions when cache entries are removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.influence.ablation import Ablation, removal
from forward_influence.influence.ablation_kinds import REMOVE, ablation_kind
from forward_influence.influence.comparison import Influence, compare_hidden
from forward_influence.influence.effects import DEFAULT, effect_of
from forward_influence.influence.full_run import Baseline, Continuation, run_in_full
from forward_influence.influence.refusals import check_influences, check_nll, check_span
from forward_influence.instrument.lm_head import Head
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_tokens, require_known
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.heap import give_back
from forward_influence.utils.progress import Progress, Silent

#: Bytes of last hidden states held for conditions that wait for the head; more conditions go in several groups.
HIDDEN_BYTES = 1 << 29


def forward_influence(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    selections: Sequence[Selection] | Selection,
    *,
    mode: str = "drop",
    effect: str = DEFAULT,
    ablation: str = REMOVE.name,
    positions: Tensor | None = None,
    chunk: int = CHUNK,
) -> list[Influence]:
    """Forward Influence of selections on a continuation (arXiv:2606.26875): FI_t(S) = KL(p_t || q_t).

    Args:
        trace: of the context, from `record` with `span` = context + continuation.
        continuation: (m,) token ids that follow the context.
        selections: one or several, from `select`.
        mode: "drop" removes what is selected, "keep" removes everything else.
        effect: "total": the continuation's own entries change too, as they do in generation; "direct": each position
            loses its own view of the selection and nothing else changes.
        ablation: "remove": entries leave the cache; "zero": their keys stay and their values become 0; "mean": their
            values become the mean of their layer's and head's candidates (`record`'s first <= i < last).
        positions: (p,) distances at which to measure, ascending; None: all m.
        chunk: tokens per forward pass.

    Returns:
        One `Influence` per selection.

    Raises:
        UsageError: an unknown effect, mode or ablation, or positions that are none.
    """
    felt, kind = effect_of(effect), ablation_kind(ablation)
    chosen = [selections] if isinstance(selections, Selection) else list(selections)
    m = int(continuation.shape[0])
    if positions is not None and not _ascending(positions, m):
        raise UsageError(f"positions must be distances from 0 to {m - 1}, ascending, each once")
    ablations = [removal(trace, s, mode, m, f"selection {i}", positions, felt, kind=kind) for i, s in enumerate(chosen)]
    return measure_ablations(model, trace, continuation, ablations, chunk=chunk)[1]


def _ascending(positions: Tensor, m: int) -> bool:
    inside = positions.dim() == 1 and len(positions) > 0 and int(positions[0]) >= 0 and int(positions[-1]) < m
    return inside and bool((positions.diff() > 0).all())


def measure_ablations(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    ablations: Sequence[Ablation],
    *,
    chunk: int = CHUNK,
    progress: Progress | None = None,
    baseline: Baseline | None = None,
) -> tuple[Tensor, list[Influence]]:
    """The baseline's NLL (m,) and the influence of each ablation at its own positions.

    The continuation runs once in full and once per ablation; only last hidden states are kept, and the head and the
    divergence go over them block by block, so that memory holds no (continuation x vocabulary). The full run's keys
    and values are kept for ablations that replay them.

    Args:
        baseline: the full cache's run, from `run_in_full`, where it is known already.

    Raises:
        ForwardInfluenceError: token ids that the model does not know, logits that are NaN or infinite, a continuation
            token or a divergence that words with a logit of minus infinity make impossible, or an ablation that changed
            nothing.
    """
    progress = progress or Silent()
    tokens = checked_tokens(continuation, "the continuation").to(model.device)
    require_known(model, tokens, "the continuation")
    m = int(tokens.shape[0])
    check_span(model, trace, m)
    targets = torch.cat([tokens[1:], tokens.new_full((1,), -1)])
    with torch.no_grad():
        give_back()  # what recording and choosing left
        if baseline is None:
            baseline = run_in_full(model, trace, tokens, chunk, any(a.replays for a in ablations))
            give_back()
        full = baseline.hidden
        followed = Continuation(model, trace, tokens, chunk, baseline.entries)
        progress.advance(m, "full cache")

        def run(ablation: Ablation) -> Tensor:
            hidden = ablation.hidden(followed)
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
    check_nll(followed, nll)
    check_influences(followed, ablations, influences)
    return nll, influences


def _waiting(ablation: Ablation) -> int:
    """What progress counts for the head and the divergence, which take about so much of the time."""
    return ablation.runs * 3 // 10


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
