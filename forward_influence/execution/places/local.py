"""In this process, one document after the other."""

from __future__ import annotations

from forward_influence.errors import UsageError
from forward_influence.execution.cluster import Cluster
from forward_influence.models.recipe import Recipe


def make(recipe: Recipe, cluster: Cluster) -> None:
    """Nothing: `measure` uses the model that it is given.

    Raises:
        UsageError: options that belong to another executor.
    """
    if cluster.address or any((cluster.workers, cluster.gpus_per_worker, cluster.threads_per_worker)):
        raise UsageError("`address`, `workers`, `gpus_per_worker` and `threads_per_worker` need `executor` ray")
