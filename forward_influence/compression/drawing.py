"""How tokens of several sequences are drawn: each with a generator of its own, as if it were alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """How many tokens are written, and how they are drawn.

    Attributes:
        new: most tokens.
        temperature: 0 is greedy.
        top_p: the most likely tokens that make up so much of the distribution.
    """

    new: int
    temperature: float = 0.0
    top_p: float = 1.0

    def row_by_row(self, settings: GenerationConfig, seeds: Sequence[int]) -> dict[str, Any]:
        """Arguments of `generate` with which each sequence draws by itself; `settings` are changed to fit.

        Drawing happens in a processor, after the settings' own: what it leaves is one token for each sequence, which
        `generate` then takes as the most likely one.
        """
        if self.temperature == 0:
            return {}
        settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
        return {"logits_processor": LogitsProcessorList([_OwnDraws(self.temperature, self.top_p, seeds)])}


class _OwnDraws(LogitsProcessor):
    """Leaves the token that each sequence drew, with the warpers of `generate` and in its order."""

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        self._warpers = LogitsProcessorList()
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))
        self._seeds, self._generators = list(seeds), list[torch.Generator]()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, vocabulary): -inf but for one token of each row."""
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        weights = self._warpers(input_ids, scores).softmax(-1)
        drawn = [torch.multinomial(w, 1, generator=g) for w, g in zip(weights, self._generators, strict=True)]
        left: Tensor = torch.full_like(scores, float("-inf"))
        return left.scatter_(1, torch.stack(drawn), 0.0)


class FirstToken(StoppingCriteria):
    """Notes when the first tokens came, and stops nothing.

    Attributes:
        at: seconds of the process's clock.
    """

    at: float = float("nan")

    def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
        """(rows,) False."""
        if self.at != self.at:
            self.at = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
