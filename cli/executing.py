"""How `measure` loads a model and where it measures, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.cli.progress import waiting
from forward_influence.errors import UsageError
from forward_influence.utils.configuration import HARDWARE, Configuration, described, option
from forward_influence.utils.defaults import CHUNK

if TYPE_CHECKING:
    from forward_influence.execution.executors import Executor
    from forward_influence.models.info import Card
    from forward_influence.models.loading import Model
    from forward_influence.models.recipe import Recipe
    from forward_influence.models.resolving import Resolved


@described
@dataclass(frozen=True)
class Effort(Configuration):
    """What a measurement may take of the machine."""

    chunk: int = option(CHUNK, "Tokens per forward pass, at most.", HARDWARE, least=1)
    compile: bool = option(False, "Compile the divergence: a minute at first, faster for many documents.", HARDWARE)
    memory_limit: str | None = option(None, "Memory above the model, 8GB.", HARDWARE, shown="80% of what is free")
    trace_cache: str = option(
        "4GB", "Disk space for contexts and baselines that later runs reuse; 0 for none.", HARDWARE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cache_bytes()
        if self.memory_limit is not None:
            from forward_influence.utils.memory import parse_bytes

            parse_bytes(self.memory_limit)

    def cache_bytes(self) -> int:
        """The disk space of `trace_cache`: 0, or an amount like 4GB."""
        from forward_influence.utils.memory import parse_bytes

        if self.trace_cache.strip() == "0":
            return 0
        try:
            return parse_bytes(self.trace_cache)
        except UsageError:
            raise UsageError(f"`trace_cache` {self.trace_cache} is no amount of space; give 4GB or 0, say") from None


@dataclass(frozen=True)
class Loading:
    """A model to be loaded, and what it may take.

    Attributes:
        recipe: how it is loaded.
        executor: measures elsewhere, with models of its own; None for this process.
        effort: what it may take.
    """

    recipe: Recipe
    executor: Executor | None
    effort: Effort

    def of_model(self, spec: str, dtype: str) -> Loading:
        """The same for a model that a run names."""
        recipe = dataclasses.replace(self.recipe, model=spec, dtype=dtype)
        executor = self.executor
        if executor is not None and hasattr(executor, "recipe"):
            executor.recipe = recipe
        return dataclasses.replace(self, recipe=recipe)

    def resolved(self) -> Resolved:
        """What the model's name means; no weights are read."""
        return self.recipe.resolved()

    def load(self, resolved: Resolved) -> tuple[Model | None, Card]:
        """The model, None where an executor has its own, and what it is."""
        if self.executor is not None:
            return None, self.executor.card()
        from forward_influence.models.info import Card

        model = load_shown(self.recipe, resolved)
        return model, Card.of(model)


def load_shown(recipe: Recipe, resolved: Resolved | None = None) -> Model:
    """The model, and a word that it is being loaded; arguments as of `Recipe.loaded`."""
    with waiting(f"loading {recipe.model}", line=True):
        return recipe.loaded(resolved)
