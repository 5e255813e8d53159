"""What is refused before and after a measurement: spans that do not fit, and numbers that cannot be results."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.ablation import Ablation, shuffled
from forward_influence.influence.comparison import Influence
from forward_influence.influence.effects import Effect
from forward_influence.influence.full_run import Continuation
from forward_influence.influence.nonfinite import first_bad_length
from forward_influence.instrument.architecture import replayable
from forward_influence.instrument.replay import require_replayable
from forward_influence.instrument.rotary_span import changes_with_length
from forward_influence.instrument.steps import Steps, require_alone
from forward_influence.models.loading import Model
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.trace import Trace


def check_model(effects: Sequence[Effect], needs: Needs, kinds: Collection[str], steps: Steps) -> None:
    """Refuse effects and rules that a model's layers do not allow, before anything is read.

    Args:
        effects: that are to be measured.
        needs: what the rules read.
        kinds: what transformers calls the layers of the model's cache.
        steps: how its tokens may follow it.

    Raises:
        UsageError: with the reason.
    """
    if needs.looks_ahead:
        require_replayable(kinds)
    if any(effect.each_by_itself for effect in effects) and not replayable(kinds):
        require_alone(steps)


def check_span(model: Model, trace: Trace, m: int) -> None:
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


def check_nll(continuation: Continuation, nll: Tensor) -> None:
    """Refuse a baseline whose NLL (m,) is not a number.

    Raises:
        ForwardInfluenceError: naming the token, or the distance where logits are NaN or infinite.
    """
    if bool(torch.isinf(nll).any()):
        where = int(torch.isinf(nll).nonzero()[0, 0])
        raise ForwardInfluenceError(
            f"the continuation's token {where + 1} is {int(continuation.tokens[where + 1])}, a word that the model "
            "never writes (its logit is minus infinity); leave this document out"
        )
    if not bool(torch.isfinite(nll[:-1]).all()):
        whole = shuffled(continuation.trace, len(nll))  # in any order: what is looked for is no matter of rounding
        raise ForwardInfluenceError(
            f"the full cache gives NaN or infinite logits at distance {first_bad(continuation, whole)}; "
            "try `dtype` float32, or leave this document out"
        )


def check_influences(
    continuation: Continuation, ablations: Sequence[Ablation], influences: Sequence[Influence]
) -> None:
    """Refuse influences that are not finite, and ablations that changed nothing.

    Raises:
        ForwardInfluenceError: naming the ablation and the distance.
    """
    for ablation, influence in zip(ablations, influences, strict=True):
        if bool(torch.isposinf(influence.kl).any()):
            raise ForwardInfluenceError(
                f"{ablation.label}: KL is infinite at distance {_distance(ablation, torch.isposinf(influence.kl))}, "
                "where words become impossible (logits of minus infinity) that the full cache thinks possible; leave "
                "this document out"
            )
        if not bool(torch.isfinite(influence.kl).all()):
            bad = ~torch.isfinite(influence.kl)
            where = first_bad(continuation, ablation) if ablation.spoils else _distance(ablation, bad)
            raise ForwardInfluenceError(
                f"{ablation.label}: NaN or infinite logits at distance {where}; try `dtype` float32, or leave this "
                "document out"
            )
        if not ablation.empty and not bool((influence.kl > 0).any()):
            raise ForwardInfluenceError(
                f"{ablation.label}: the ablation left every logit untouched, which cannot be; nothing is recorded"
            )


def _distance(ablation: Ablation, bad: Tensor) -> int:
    """The first distance of an ablation where `bad` (p,) is set."""
    return int(ablation.distances()[bad.nonzero()[0, 0]])


def first_bad(continuation: Continuation, ablation: Ablation) -> int:
    """The distance of the first continuation token whose states are not finite under an ablation, by shorter runs."""

    def is_finite(length: int) -> bool:
        with torch.no_grad():
            shorter = dataclasses.replace(ablation, length=length, positions=None)
            hidden = shorter.hidden(dataclasses.replace(continuation, chunk=length))
            logits = continuation.model.anatomy.head(hidden[-1:])
            return not bool((torch.isnan(logits) | torch.isposinf(logits)).any()) and bool(torch.isfinite(hidden).all())

    most = int(ablation.distances()[-1]) + 1
    return most - 1 if is_finite(most) else first_bad_length(most, is_finite) - 1
