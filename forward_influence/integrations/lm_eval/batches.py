"""Which requests of the harness are answered side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from forward_influence.compression.side_by_side import BATCH, alike
from forward_influence.errors import UsageError
from forward_influence.integrations.lm_eval.asking import Asked
from forward_influence.models.loading import Model


@dataclass(frozen=True)
class Prepared:
    """A generation request.

    Attributes:
        context: (c,) tokens that are compressed.
        question: (q,) tokens that are read after that.
        limit: most tokens of the answer.
        asked: its settings.
    """

    context: Tensor
    question: Tensor
    limit: int
    asked: Asked

    @property
    def span(self) -> int:
        """Tokens at its end."""
        return len(self.context) + len(self.question) + self.limit


def batch_size_of(asked: int | str, most: int | None) -> int:
    """How many requests are answered side by side.

    Raises:
        UsageError: it is no number of requests.
    """
    text = str(asked)
    if text.startswith("auto"):
        return min(BATCH, int(most or BATCH))
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch_size {asked} is no number of requests; give 1 or more, or auto")
    return int(text)


def batches_of(model: Model, prepared: Sequence[Prepared], most: int) -> Iterator[list[int]]:
    """Indices of requests that are answered together: those that end alike; sampled ones and beams go alone."""
    if most == 1:
        yield from ([i] for i in range(len(prepared)))
        return
    kinds: dict[object, list[int]] = {}
    for i, one in enumerate(prepared):
        kinds.setdefault(i if one.asked.settings else (one.limit, one.asked.until), []).append(i)
    for members in kinds.values():
        for group in alike(model, [prepared[i].span for i in members], most):
            yield [members[i] for i in group]
