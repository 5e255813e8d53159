"""The executor that `measure` was asked for, made before a model is loaded where it cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forward_influence.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from forward_influence.executors import Executor
    from forward_influence.ray_executor import Recipe

EXECUTORS = ("local", "ray")


def chosen_executor(
    name: str, recipe: Recipe, address: str | None, workers: int, gpus_per_worker: float
) -> Executor | None:
    """None for this process.

    Raises:
        UsageError: an unknown executor, options that belong to another one, or Ray is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"--executor {name} is unknown{did_you_mean(name, list(EXECUTORS))}; it is local or ray")
    if name == "local":
        if address or workers or gpus_per_worker:
            raise UsageError("--address, --workers and --gpus-per-worker need --executor ray")
        return None
    from forward_influence.ray_executor import RayExecutor

    return RayExecutor(recipe, address, workers, gpus_per_worker)
