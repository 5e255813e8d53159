"""What a run measures on each segment: rules and compressors x budgets x draws x effects x slices of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forward_influence.compression.contenders import Contender
from forward_influence.influence.effects import DEFAULT, Effect
from forward_influence.influence.effects.total import TOTAL
from forward_influence.measurement.request import Request
from forward_influence.measurement.seeds import derived_seed
from forward_influence.measurement.slices import layer_slices
from forward_influence.selectors import Selector
from forward_influence.selectors.selection import Budget


@dataclass(frozen=True, kw_only=True)
class Condition(ABC):
    """One rule or compressor at one budget, one draw of it, one effect, in some layers.

    Attributes:
        draw: number of the draw, None for what does not draw.
        effect: how the continuation feels what is gone.
        layers: model layers that are ablated; None for all full-attention ones.
    """

    draw: int | None = None
    effect: Effect = TOTAL
    layers: tuple[int, ...] | None = None

    @property
    def reads_context(self) -> bool:
        """Whether its run begins with the context instead of with what is recorded of it."""
        return False

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the rule or compressor, as rows have it."""

    @property
    @abstractmethod
    def amount(self) -> str:
        """The budget, as rows have it."""

    @property
    def label(self) -> str:
        """How progress and errors name it."""
        draw = "" if self.draw is None else f" draw {self.draw}"
        effect = "" if self.effect.name == DEFAULT else f" {self.effect.name}"
        layer = f" layer {self.layers[0]}" if self.layers is not None and len(self.layers) == 1 else ""
        return f"{self.name} at {self.amount}{draw}{effect}{layer}"


@dataclass(frozen=True, kw_only=True)
class RuleCondition(Condition):
    """What a rule selects leaves the cache, or all else does.

    Attributes:
        rule: the rule, with this draw's seed where it draws.
        budget: how much it selects.
        from_states: whether what removed tokens wrote into states goes too.
    """

    rule: Selector
    budget: Budget
    from_states: bool = False

    @property
    def reads_context(self) -> bool:
        """Where states are made anew."""
        return self.from_states

    @property
    def choice(self) -> tuple[Selector, Budget]:
        """What decides the selection."""
        return self.rule, self.budget

    @property
    def name(self) -> str:
        """The rule's specification."""
        return self.rule.spec

    @property
    def amount(self) -> str:
        """The rule's budget."""
        return self.budget.text


@dataclass(frozen=True, kw_only=True)
class CompressorCondition(Condition):
    """A cache that a compressor goes on compressing while the continuation is read.

    Attributes:
        contender: the compressor and its budget.
        seed: of the draw.
    """

    contender: Contender
    seed: int

    @property
    def reads_context(self) -> bool:
        """The cache is compressed while it is read."""
        return True

    @property
    def name(self) -> str:
        """The compressor's, as typed."""
        return self.contender.name

    @property
    def amount(self) -> str:
        """The compressor's budget."""
        return self.contender.budget


def expand(request: Request, fingerprint: str, segment: int, full_layers: Sequence[int] = ()) -> list[Condition]:
    """Every condition of a segment: those of rules, then those of compressors.

    Args:
        full_layers: the model's layers that can be ablated; a sweep over layers needs them.
    """
    rules = expand_rules(request, fingerprint, segment, full_layers)
    return [*rules, *expand_compressors(request, fingerprint, segment)]


def expand_rules(
    request: Request, fingerprint: str, segment: int, full_layers: Sequence[int] = ()
) -> list[RuleCondition]:
    """Every rule, budget, draw, effect and slice of a segment, seeds derived from the run's seed and the document.

    Conditions of one selection follow one another.

    Args:
        full_layers: as of `expand`.
    """
    slices = layer_slices(request, full_layers)
    conditions = []
    for rule in request.rules:
        for budget in request.parsed_budgets:
            for draw in range(request.draws) if rule.stochastic else (None,):
                drawn = rule
                if draw is not None:
                    drawn = rule.at(derived_seed(request.seed, fingerprint, segment, rule.spec, draw))
                shared: dict[str, Any] = {"rule": drawn, "budget": budget, "draw": draw}
                conditions += [
                    RuleCondition(**shared, effect=effect, layers=layers, from_states=request.states == "ablate")
                    for effect in request.effects
                    for layers in slices
                ]
    return conditions


def expand_compressors(request: Request, fingerprint: str, segment: int) -> list[CompressorCondition]:
    """Every compressor, budget and draw of a segment, seeds derived from the run's seed and the document."""
    found = []
    for contender in request.contenders:
        for draw in range(request.draws) if contender.compressor.rule.stochastic else (None,):
            seed = derived_seed(request.seed, fingerprint, segment, contender.name, draw)
            found.append(CompressorCondition(contender=contender, draw=draw, seed=seed))
    return found
