"""What is measured as rows of a part, keys as in `parts.SCHEMA`."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from forward_influence.compression import Outcome
from forward_influence.compression.fidelity import CompressedRun
from forward_influence.influence.ablation import Influence
from forward_influence.measurement.conditions import CompressorCondition, Condition
from forward_influence.measurement.request import Request
from forward_influence.measurement.selection_step import Choice
from forward_influence.storage.shards import SCHEMA
from forward_influence.tracing.trace import Trace


def row_of(base: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    """A row with every column: what is not given is None."""
    return {**dict.fromkeys(SCHEMA.names), **base, "kind": kind, **values}


def described(condition: Condition, choice: Choice, request: Request, positions: Tensor | None) -> dict[str, Any]:
    """What a row says about a rule's condition."""
    part, grain = choice.part, choice.whole.grain
    kept = _kept(choice, request) if request.mode == "keep" else {}
    parameters = {**condition.rule.parameters, **choice.notes, "grain": grain}
    if kept:
        parameters["ends"] = [request.candidates.first, request.candidates.n - request.candidates.last]
    return {
        "selector": condition.rule.spec,
        # with the grain that came out: a comparison has to name it, and `per` does not tell that entropy is coherent
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
        "budget": condition.budget.text,
        "selected": part.selection.counts.flatten().tolist(),
        **kept,
        "mode": request.mode,
        "effect": condition.effect,
        "seed": condition.draw,
        "layers": list(part.layers),
        "heads": list(part.heads),
        "distance": None if positions is None else positions.tolist(),
    }


def _kept(choice: Choice, request: Request) -> dict[str, float]:
    """What stays of a context, where only what a rule selects does: mean over the layers and heads that are ablated."""
    part, candidates = choice.part, request.candidates
    held = float(part.selection.counts.sum()) / (len(part.layers) * len(part.heads))
    pinned = float(candidates.protected)
    return {"held": held, "held_most": held + request.continuation, "pinned": pinned, "chosen": held - pinned}


def outcome_columns(outcome: Outcome) -> dict[str, float]:
    """What a compressor held and chose, as columns."""
    return {"held": outcome.held, "held_most": outcome.most, "pinned": outcome.pinned, "chosen": outcome.chosen}


def described_compressor(
    condition: CompressorCondition, run: CompressedRun, trace: Trace, positions: Tensor | None
) -> dict[str, Any]:
    """What a row says about a compressor's condition."""
    outcome = run.outcome
    assert outcome is not None
    compressor = condition.contender.compressor
    made: dict[str, Any] = {"compressor": True, "every": compressor.schedule.every, "scheme": compressor.scheme}
    made |= {"grain": outcome.grain, "ends": outcome.ends}  # what came out: `per` does not tell it, nor `protect_last`
    return {
        "selector": condition.contender.name,
        "parameters": json.dumps({**compressor.rule.parameters, **made}, sort_keys=True, default=str),
        "budget": condition.contender.budget,
        "selected": outcome.counts.flatten().tolist(),
        **outcome_columns(outcome),
        "mode": "keep",
        "effect": "total",
        "seed": condition.draw,
        "layers": list(trace.layers),
        "heads": list(range(trace.kv_heads)),
        "distance": None if positions is None else positions.tolist(),
    }


def arrays(influence: Influence) -> dict[str, Any]:
    """What was measured, as columns."""
    return {
        "kl": influence.kl.float().numpy(),
        "nll_delta": influence.nll_delta.float().numpy(),
        "top1_changed": influence.top1_changed.numpy(),
    }
