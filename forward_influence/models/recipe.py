"""How a model is loaded, by name: what a command line says of it, and what travels to a worker."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.utils.configuration import BASICS, HARDWARE, Configuration, described, option


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
