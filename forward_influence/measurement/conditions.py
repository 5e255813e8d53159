"""What a run measures on each segment: rules x budgets x draws x effects x slices of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.compression.contenders import Contender
from forward_influence.errors import UsageError
from forward_influence.influence.direct import sampled_positions
from forward_influence.measurement.request import Request
from forward_influence.selectors import Selector
from forward_influence.selectors.selection import Budget, Selection
from forward_influence.tracing.signals.gradients import closing_zones, fisher_zones, label_samples
from forward_influence.utils.distances import zones

#: How many positions the controls cover: enough to see a floor and an effect, cheap beside a condition. In 16 bits the
#: floor is of the size of small influences and is taken off them: there it covers what conditions cover.
NOISE_POSITIONS = 256
POSITIVE_POSITIONS = 64
#: Bytes of a number from which on rounding is a millionth of any influence.
WIDE = 4


@dataclass(frozen=True)
class Condition:
    """One rule at one budget, one draw of it, one effect, in some layers and heads.

    Attributes:
        rule: the rule, with this draw's seed where it draws.
        budget: how much it selects.
        draw: number of the draw, None for rules that do not draw.
        effect: "total" or "direct".
        layers: model layers that are ablated; None for all full-attention ones.
    """

    rule: Selector
    budget: Budget
    draw: int | None
    effect: str = "total"
    layers: tuple[int, ...] | None = None

    @property
    def choice(self) -> tuple[Selector, Budget]:
        """What decides the selection."""
        return self.rule, self.budget

    @property
    def label(self) -> str:
        """How progress and errors name it."""
        draw = "" if self.draw is None else f" draw {self.draw}"
        effect = "" if self.effect == "total" else f" {self.effect}"
        layer = f" layer {self.layers[0]}" if self.layers is not None and len(self.layers) == 1 else ""
        return f"{self.rule.spec} at {self.budget.text}{draw}{effect}{layer}"


def expand(request: Request, fingerprint: str, segment: int, full_layers: Sequence[int] = ()) -> list[Condition]:
    """Every condition of a segment, seeds derived from the run's seed and the document.

    Conditions of one selection follow one another.

    Args:
        full_layers: the model's layers that can be ablated; a sweep over layers needs them.
    """
    slices = layer_slices(request, full_layers)
    conditions = []
    for rule in request.rules:
        for budget in request.parsed_budgets:
            for draw in range(request.draws) if rule.stochastic else (None,):
                drawn = rule
                if draw is not None:
                    drawn = rule.at(derived_seed(request.seed, fingerprint, segment, rule.spec, draw))
                conditions += [
                    Condition(drawn, budget, draw, effect, layers) for effect in request.effects for layers in slices
                ]
    return conditions


@dataclass(frozen=True)
class CompressorCondition:
    """One compressor at one budget, one draw of it.

    Attributes:
        contender: the compressor and its budget.
        draw: number of the draw, None for compressors that do not draw.
        seed: of the draw.
    """

    contender: Contender
    draw: int | None
    seed: int

    @property
    def label(self) -> str:
        """How progress and errors name it."""
        draw = "" if self.draw is None else f" draw {self.draw}"
        return f"{self.contender.name} at {self.contender.budget}{draw}"


def expand_compressors(request: Request, fingerprint: str, segment: int) -> list[CompressorCondition]:
    """Every compressor, budget and draw of a segment, seeds derived from the run's seed and the document."""
    found = []
    for contender in request.contenders:
        for draw in range(request.draws) if contender.compressor.rule.stochastic else (None,):
            seed = derived_seed(request.seed, fingerprint, segment, contender.name, draw)
            found.append(CompressorCondition(contender, draw, seed))
    return found


def layer_slices(request: Request, full_layers: Sequence[int]) -> list[tuple[int, ...] | None]:
    """The sets of layers that are ablated in turn: one set, or each layer by itself in a sweep."""
    if not request.per_layer:
        return [request.layers]
    return [(layer,) for layer in (full_layers if request.layers is None else request.layers)]


def derived_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:7], "big")


def floor_runs(request: Request, itemsize: int = WIDE) -> list[tuple[int, int]]:
    """(tokens that run, positions that are compared) of each noise floor of a document.

    Args:
        itemsize: bytes of a number in the model's dtype.
    """
    m = request.continuation
    if itemsize >= WIDE:
        return [(min(NOISE_POSITIONS, m),) * 2] * len(request.effects)
    sampled = measured_positions(request, m, "", 0)
    compared = m if sampled is None else len(sampled)
    return [(compared if effect == "direct" else m, compared) for effect in request.effects] * request.segments


def document_tokens(request: Request, full_layers: Sequence[int] = (), itemsize: int = WIDE) -> int:
    """Forward tokens that one document costs, for progress; `itemsize` as in `floor_runs`."""
    m = request.continuation
    controls = min(POSITIVE_POSITIONS, m) * len(request.effects)
    controls += sum(tokens for tokens, _ in floor_runs(request, itemsize))
    conditions = expand(request, "", 0, full_layers)
    sampled = measured_positions(request, m, "", 0)
    direct = m if sampled is None else len(sampled)
    per_segment = request.context + m + sum(direct if c.effect == "direct" else m for c in conditions)
    per_segment += (request.context + m) * len(expand_compressors(request, "", 0))
    generated = m * request.segments if request.continuation_from == "generate" else 0
    return request.segments * (per_segment + gradient_tokens(request)) + controls + generated


def gradient_tokens(request: Request) -> int:
    """Tokens of the backward passes that rules need which look ahead."""
    needs, ends, m = request.needs, zones(request.continuation), request.continuation
    sampled, closed = fisher_zones(needs), closing_zones(needs)
    fisher = m + sum(ends[zone][1] for zone in sampled) * label_samples(needs) if sampled else 0
    closing = 2 * m + sum(ends[zone][1] for zone in closed) if closed else 0
    return fisher + closing


def measured_positions(request: Request, m: int, fingerprint: str, segment: int) -> Tensor | None:
    """Distances at which a segment's conditions are measured, the same for all of them; None for all m."""
    if request.positions_per_bin is None:
        return None
    seed = derived_seed(request.seed, fingerprint, segment, "positions")
    return sampled_positions(m, request.positions_per_bin, request.bin_width, seed)


@dataclass(frozen=True)
class Slice:
    """A selection in some layers and heads of the model.

    Attributes:
        selection: what was selected there; nothing elsewhere.
        removed: what leaves the cache: the same in drop mode; in keep mode everything else *there*.
        layers, heads: where.
    """

    selection: Selection
    removed: Selection
    layers: tuple[int, ...]
    heads: tuple[int, ...]


def sliced(selection: Selection, mode: str, layers: Sequence[int] | None, heads: Sequence[int] | None) -> Slice:
    """A selection restricted to model layers and kv heads, None for all.

    Raises:
        UsageError: layers or heads that cannot be ablated.
    """
    where = None if layers is None else set(layers), None if heads is None else set(heads)
    removed = Selection(~selection.kept(mode), selection.layers)
    count = selection.mask.shape[1]
    return Slice(
        selection.restricted(*where),
        removed.restricted(*where),
        tuple(layer for layer in selection.layers if where[0] is None or layer in where[0]),
        tuple(head for head in range(count) if where[1] is None or head in where[1]),
    )


def check_slices(request: Request, full_layers: Sequence[int], kv_heads: int) -> None:
    """Refuse layers and heads that a model does not have, before anything is measured.

    Raises:
        UsageError: with those that there are.
    """
    if not full_layers:
        if request.layers is not None or request.per_layer:
            raise UsageError("the model has no full-attention layer to ablate at this length; use a shorter span")
        return
    nothing = torch.zeros(len(full_layers), kv_heads, 1, dtype=torch.bool)
    sliced(Selection(nothing, tuple(full_layers)), "drop", request.layers, request.heads)
