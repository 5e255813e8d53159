"""How a model is loaded, by name: what a command line says of it, and what travels to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.utils.configuration import BASICS, HARDWARE, Configuration, described, option

if TYPE_CHECKING:
    from forward_influence.models.loading import Model
    from forward_influence.models.resolving import Resolved


@described
@dataclass(frozen=True)
class Recipe(Configuration):
    """The arguments of `load_model`."""

    model: str = option("smollm2-135m", "A name from `models`, a folder, a .gguf file or a hub id.", BASICS)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", HARDWARE)
    dtype: str = option("auto", "auto (float32), float64, bfloat16, float16.", HARDWARE)
    revision: str | None = option(None, "Branch, tag or commit of a hub model.", HARDWARE, shown="the newest")
    trust_remote_code: bool = option(False, "Let a hub model run code of its own.", HARDWARE)
    device_map: str | None = option(
        None, "auto: spread a model that one device cannot hold (accelerate).", HARDWARE, shown="one device"
    )

    def resolved(self) -> Resolved:
        """What the model's name means; no weights are read.

        Raises:
            UsageError: there is no such model, or it is no causal one.
        """
        from forward_influence.models.resolving import resolve_spec

        return resolve_spec(self.model, trust_remote_code=self.trust_remote_code, revision=self.revision)

    def loaded(self, resolved: Resolved | None = None) -> Model:
        """The model.

        Args:
            resolved: what its name means, where that is known already.

        Raises:
            UsageError, ForwardInfluenceError: as `load_model`.
        """
        from forward_influence.models.loading import load_model

        where = self.resolved() if resolved is None else resolved
        return load_model(where, device=self.device, dtype=self.dtype, device_map=self.device_map)
