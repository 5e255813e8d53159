"""The controls of every document: an empty selection and one of everything, through the same physical path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forward_influence.conditions import NOISE_POSITIONS, POSITIVE_POSITIONS
from forward_influence.influence import Ablation, removal, shuffled
from forward_influence.selection import Candidates, Selection
from forward_influence.trace import Trace


@dataclass(frozen=True)
class Control:
    """A control of a document: what is ablated, and as which kind of row it is written."""

    kind: str
    ablation: Ablation
    selection: Selection

    def described(self, trace: Trace) -> dict[str, Any]:
        """What its row says about it."""
        return {
            "selector": self.kind,
            "selected": self.selection.counts.flatten().tolist(),
            "mode": "drop",
            "effect": "direct" if self.ablation.direct else "total",
            "layers": list(trace.layers),
            "heads": list(range(trace.kv_heads)),
            "distance": list(range(self.ablation.length)),
        }


def controls_of(trace: Trace, candidates: Candidates, m: int, effects: Sequence[str]) -> list[Control]:
    """The noise floor and the positive control, of each effect that is measured."""
    everything = torch.zeros(trace.shape, dtype=torch.bool, device=trace.tokens.device)
    nothing = Selection(everything.clone(), trace.layers)
    everything[..., candidates.first : candidates.last] = True
    all_candidates = Selection(everything, trace.layers)
    controls = []
    for direct in (effect == "direct" for effect in effects):
        floor = shuffled(trace, min(NOISE_POSITIONS, m), direct=direct)
        most = min(POSITIVE_POSITIONS, m)
        positive = removal(trace, all_candidates, "drop", most, "dropping all candidates", direct=direct)
        controls += [
            Control("noise_floor", floor, nothing),
            Control("positive_control", positive, all_candidates),
        ]
    return controls
