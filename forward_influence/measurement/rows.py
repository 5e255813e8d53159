"""What is measured as rows of a part, keys as in `parts.SCHEMA`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from forward_influence.compression import Outcome
from forward_influence.influence.comparison import Influence
from forward_influence.measurement.conditions import CompressorCondition, Condition, RuleCondition
from forward_influence.measurement.request import Request
from forward_influence.measurement.selection_step import Choice
from forward_influence.storage.shards import SCHEMA
from forward_influence.tracing.trace import Trace


def row_of(base: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    """A row with every column: what is not given is None."""
    return {**dict.fromkeys(SCHEMA.names), **base, "kind": kind, **values}


@dataclass(frozen=True)
class Found:
    """What a condition came to on one segment, as far as its row says it.

    Attributes:
        parameters: of the rule or compressor, and what came out: the grain above all, which a comparison has to name.
        selected: entries per layer and head, (layers, kv_heads): selected by a rule, held by a compressor.
        mode: "drop" or "keep".
        layers, heads: that are ablated.
        held: entries per layer and head that stay, where only what was chosen does: columns of the row.
    """

    parameters: Mapping[str, Any]
    selected: Tensor
    mode: str
    layers: Sequence[int]
    heads: Sequence[int]
    held: Mapping[str, float] = field(default_factory=dict)


def described(condition: Condition, found: Found, positions: Tensor | None) -> dict[str, Any]:
    """What a row says about a condition that was measured at `positions` (None: everywhere)."""
    return {
        "selector": condition.name,
        "parameters": json.dumps(found.parameters, sort_keys=True, default=str),
        "budget": condition.amount,
        "selected": found.selected.flatten().tolist(),
        **found.held,
        "mode": found.mode,
        "effect": condition.effect.name,
        "seed": condition.draw,
        "layers": list(found.layers),
        "heads": list(found.heads),
        "distance": None if positions is None else positions.tolist(),
    }


def of_choice(condition: RuleCondition, choice: Choice, request: Request) -> Found:
    """What a rule's condition came to."""
    part, candidates = choice.part, request.candidates
    parameters = {**condition.rule.parameters, **choice.notes, "grain": choice.whole.grain}
    held: dict[str, float] = {}
    if request.mode == "keep":
        parameters["ends"] = [candidates.first, candidates.n - candidates.last]
        # mean over the layers and heads that are ablated
        count = float(part.selection.counts.sum()) / (len(part.layers) * len(part.heads))
        pinned = float(candidates.protected)
        held = {"held": count, "held_most": count + request.continuation, "pinned": pinned, "chosen": count - pinned}
    return Found(parameters, part.selection.counts, request.mode, part.layers, part.heads, held)


def of_outcome(condition: CompressorCondition, outcome: Outcome, trace: Trace) -> Found:
    """What a compressor's condition came to."""
    compressor = condition.contender.compressor
    made: dict[str, Any] = {"compressor": True, "every": compressor.schedule.every, "scheme": compressor.scheme}
    made |= {"grain": outcome.grain, "ends": outcome.ends}  # what came out: `per` does not tell it, nor `protect_last`
    parameters = {**compressor.rule.parameters, **made}
    held = outcome_columns(outcome)
    return Found(parameters, outcome.counts, "keep", trace.layers, range(trace.kv_heads), held)


def outcome_columns(outcome: Outcome) -> dict[str, float]:
    """What a compressor held and chose, as columns."""
    return {"held": outcome.held, "held_most": outcome.most, "pinned": outcome.pinned, "chosen": outcome.chosen}


def arrays(influence: Influence) -> dict[str, Any]:
    """What was measured, as columns."""
    return {
        "kl": influence.kl.float().numpy(),
        "nll_delta": influence.nll_delta.float().numpy(),
        "top1_changed": influence.top1_changed.numpy(),
    }
