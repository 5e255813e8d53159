"""Where documents are measured, as it is asked for; executors by the names of their files in `places`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.execution import places
from forward_influence.utils.configuration import CLUSTER, Configuration, described, option
from forward_influence.utils.discovery import module_names

if TYPE_CHECKING:
    from forward_influence.execution.executors import Executor
    from forward_influence.models.recipe import Recipe


@described
@dataclass(frozen=True)
class Cluster(Configuration):
    """Where documents are measured."""

    executor: str = option(
        "local",
        f"{', '.join(module_names(places))}; ray: documents over a cluster.",
        CLUSTER,
        choices=module_names(places),
    )
    address: str | None = option(
        None,
        "Of a Ray cluster: auto, host:6379, ray://host:10001.",
        CLUSTER,
        shown="started here",
    )
    workers: int = option(0, "Ray workers, a model each.", CLUSTER, shown="all that fit")
    gpus_per_worker: float = option(0.0, "GPUs of each Ray worker.", CLUSTER)
    threads_per_worker: int = option(0, "Processors of each Ray worker.", CLUSTER, shown="as torch uses here")

    def made(self, recipe: Recipe) -> Executor | None:
        """The executor; None for this process.

        Raises:
            UsageError: options that belong to another executor, or Ray is not installed.
        """
        place = importlib.import_module(f"{places.__name__}.{self.executor}")
        made: Executor | None = place.make(recipe, self)
        return made
