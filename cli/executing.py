"""How `measure` loads a model and where it measures, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from forward_influence.execution.executors import Executor
    from forward_influence.execution.ray_executor import Recipe
    from forward_influence.models.info import Card
    from forward_influence.models.loading import Model, Resolved

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Loading:
    """A model to be loaded, and what it may take.

    Attributes:
        recipe: how it is loaded.
        executor: measures elsewhere, with models of its own; None for this process.
        memory_limit: above the model, as typed.
        chunk: tokens per forward pass, at most.
        compile: whether to compile the divergence.
        trace_cache: bytes of disk for traces.
    """

    recipe: Recipe
    executor: Executor | None
    memory_limit: str | None
    chunk: int
    compile: bool
    trace_cache: int

    def of_model(self, spec: str, dtype: str) -> Loading:
        """The same for a model that a run names."""
        recipe = dataclasses.replace(self.recipe, spec=spec, dtype=dtype)
        executor = self.executor
        if executor is not None and hasattr(executor, "recipe"):
            executor.recipe = recipe
        return dataclasses.replace(self, recipe=recipe)

    def resolved(self) -> Resolved:
        """What the model's name means; no weights are read."""
        from forward_influence.models.loading import resolve_spec

        recipe = self.recipe
        return resolve_spec(recipe.spec, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)

    def load(self, resolved: Resolved) -> tuple[Model | None, Card]:
        """The model, None where an executor has its own, and what it is."""
        if self.executor is not None:
            return None, self.executor.card()
        from forward_influence.models.info import Card
        from forward_influence.models.loading import load_model

        recipe = self.recipe
        model = load_model(resolved, device=recipe.device, dtype=recipe.dtype, device_map=recipe.device_map)
        return model, Card.of(model)


def cache_bytes(text: str) -> int:
    """The disk space of --trace-cache: 0, or an amount like 4GB."""
    from forward_influence.utils.memory import parse_bytes

    if text.strip() == "0":
        return 0
    try:
        return parse_bytes(text)
    except UsageError:
        raise UsageError(f"--trace-cache {text} is no amount of space; give 4GB or 0, say") from None


def chosen_executor(
    name: str,
    recipe: Recipe,
    address: str | None,
    workers: int,
    gpus_per_worker: float,
    threads_per_worker: int,
) -> Executor | None:
    """None for this process.

    Raises:
        UsageError: an unknown executor, options that belong to another one, or Ray is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"--executor {name} is unknown{did_you_mean(name, list(EXECUTORS))}; it is local or ray")
    if name == "local":
        if address or workers or gpus_per_worker or threads_per_worker:
            raise UsageError("--address, --workers, --gpus-per-worker and --threads-per-worker need --executor ray")
        return None
    from forward_influence.execution.ray_executor import RayExecutor

    return RayExecutor(recipe, address, workers, gpus_per_worker, threads_per_worker)
