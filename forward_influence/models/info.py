"""What a run has to know of its model, wherever that is loaded: in this process, or on a worker elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forward_influence.instrument.architecture import full_layers
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.steps import Steps
from forward_influence.models import generation_settings
from forward_influence.models.held_bytes import cache_bytes_of
from forward_influence.models.holding import holding
from forward_influence.models.loading import Model
from forward_influence.models.sizes import Sizes
from forward_influence.utils.memory import free_bytes


@dataclass(frozen=True)
class Card:
    """A model, described.

    Attributes:
        spec, fingerprint, configuration, dtype, device: as of `Model`, in words.
        weights: their digest.
        positions: how many it was made for; None where it does not say.
        windows: per layer, in tokens; None for full attention.
        unlike: layers with other numbers of heads than the full ones.
        kv_heads: of the full layers.
        kinds: per layer, what transformers' cache calls it.
        steps: how its tokens may follow a cache.
        sizes: what memory depends on.
        free_bytes: memory that is free where it is loaded; None where that is not known.
        description: what the manifest says beside that.
    """

    spec: str
    fingerprint: str
    weights: str
    configuration: dict[str, Any]
    dtype: str
    device: str
    positions: int | None
    windows: tuple[int | None, ...]
    unlike: tuple[int, ...]
    kv_heads: int
    kinds: tuple[str, ...]
    steps: Steps
    sizes: Sizes
    free_bytes: int | None
    description: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Model) -> Card:
        """Describe a loaded model.

        Raises:
            UsageError: it was changed since it was loaded.
        """
        model.require_unchanged()
        anatomy = model.anatomy
        special = {}
        if model.tokenizer is not None:
            special = {k: str(v) for k, v in model.tokenizer.special_tokens_map.items()}
        return cls(
            spec=model.spec,
            fingerprint=model.fingerprint,
            weights=model.digests.weights,
            configuration=model.configuration,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            positions=anatomy.positions,
            windows=anatomy.windows,
            unlike=anatomy.unlike,
            kv_heads=anatomy.kv_heads,
            kinds=anatomy.kinds,
            steps=anatomy.steps,
            sizes=_sizes(model),
            free_bytes=free_bytes(model.device),
            description={
                "class": type(model.model).__name__,
                "layers": anatomy.layers,
                "query_heads": anatomy.query_heads,
                "head_size": anatomy.head_size,
                "hidden": anatomy.hidden,
                "vocabulary": anatomy.vocabulary,
                "head": type(anatomy.head).__name__,
                "provenance": dict(model.provenance),
                "tokenizer": type(model.tokenizer).__name__ if model.tokenizer is not None else None,
                "special_tokens": special,
                "generation": generation_settings.described(model.model),
            },
        )

    def full_layers(self, span: int) -> tuple[int, ...]:
        """The layers that can be ablated in a sequence of `span` tokens; see `Anatomy.full_layers`."""
        return full_layers(self.windows, self.unlike, span)

    def described(self, span: int) -> dict[str, Any]:
        """What a manifest says about the model."""
        return {
            "spec": self.spec,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "device": self.device,
            "positions": self.positions,
            "full_layers": list(self.full_layers(span)),
            "windows": list(self.windows),
            "kv_heads": self.kv_heads,
            "cache_layers": list(self.kinds),
            "run_in": self.steps.described(),
            "holding": holding(self.kinds),
            **self.description,
        }


def _sizes(model: Model) -> Sizes:
    config = model.model.config
    sizes = Sizes.of(config, model.dtype.itemsize, accelerated=model.device.type != "cpu")
    return sizes.holding(cache_bytes_of(backbone(model.model), config), config)
