"""How long a sequence a model was made for, from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: What configurations call it.
_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


def positions_of(config: PretrainedConfig) -> int | None:
    """The longest sequence in tokens; None where the configuration sets no limit.

    With dynamic NTK scaling `max_position_embeddings` is what the model was trained with, and the rotary embedding is
    stretched up to `factor` times that.
    """
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "dynamic" else 1.0
    for name in _NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return int(value * factor)
    return None
