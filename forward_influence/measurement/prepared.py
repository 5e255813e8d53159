"""Conditions made ready: what runs for each, and what its row will say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from forward_influence.compression.fidelity import CompressedRun, Compression
from forward_influence.influence.ablation import Ablation, removal
from forward_influence.influence.state_ablation import from_states_too
from forward_influence.measurement.conditions import CompressorCondition, Condition, RuleCondition
from forward_influence.measurement.request import Request
from forward_influence.measurement.rows import Found, of_choice, of_outcome
from forward_influence.measurement.selection_step import Choice
from forward_influence.models.loading import Model
from forward_influence.tracing.trace import Trace


@dataclass(frozen=True)
class Prepared:
    """A condition on one segment.

    Attributes:
        condition: what is measured.
        ablation: what runs.
        found: what it came to; to be asked once the ablation ran.
    """

    condition: Condition
    ablation: Ablation
    found: Callable[[], Found]


class Preparing:
    """Makes conditions ready on one segment.

    Args:
        trace: of the context, (n,) tokens.
        length: tokens of the continuation.
        positions: distances (p,) at which it is measured; None for all.
        document: its name, by which errors name what they are about.
        chunk: tokens per forward pass.
    """

    def __init__(
        self,
        model: Model,
        trace: Trace,
        request: Request,
        length: int,
        positions: Tensor | None,
        document: str,
        chunk: int,
    ) -> None:
        self._model, self._trace, self._request, self._chunk = model, trace, request, chunk
        self._length, self._positions, self._document = length, positions, document

    def rules(self, conditions: Sequence[RuleCondition], choices: Sequence[Choice]) -> list[Prepared]:
        """Conditions of rules, with what each selects."""
        return [self._rule(condition, choice) for condition, choice in zip(conditions, choices, strict=True)]

    def _rule(self, condition: RuleCondition, choice: Choice) -> Prepared:
        ablation = removal(
            self._trace,
            choice.part.removed,
            "drop",
            self._length,
            self._label(condition),
            self._positions,
            condition.effect,
            self._request.rerotate,
        )
        if condition.from_states:
            ablation = from_states_too(ablation, self._trace, choice.part.removed)
        return Prepared(condition, ablation, lambda: of_choice(condition, choice, self._request))

    def compressors(self, conditions: Sequence[CompressorCondition]) -> list[Prepared]:
        """Conditions of compressors, which choose while they run."""
        return [self._compressor(condition) for condition in conditions]

    def _compressor(self, condition: CompressorCondition) -> Prepared:
        compressor, context = condition.contender.compressor, self._trace.tokens
        run = CompressedRun(self._model, compressor, context, condition.seed, self._chunk)
        ablation = Compression(self._label(condition), self._length, positions=self._positions, run=run)

        def found() -> Found:
            assert run.outcome is not None
            return of_outcome(condition, run.outcome, self._trace)

        return Prepared(condition, ablation, found)

    def _label(self, condition: Condition) -> str:
        return f"{self._document}: {condition.label}"
