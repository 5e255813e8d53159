"""What memory and time depend on, read from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import layer_windows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Sizes:
    """What memory and time depend on, read from a configuration: no weights are needed.

    Attributes:
        layers, query_heads, kv_heads, head_size, hidden, intermediate, vocabulary: of the decoder.
        itemsize: bytes of a number in the model's dtype.
        tied: whether input and output embedding are one.
        windows: of the layers that have one, in tokens.
        accelerated: whether the model is not on a processor, where blocks of logits are larger.
        parameters: weights of the whole model, where they were counted (`plan.counted`).
        active: those of the decoder that a token is multiplied with, embeddings apart, where they were counted.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    hidden: int
    intermediate: int
    vocabulary: int
    itemsize: int = 4
    tied: bool = True
    windows: tuple[int, ...] = ()
    accelerated: bool = False
    parameters: int | None = None
    active: int | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig, itemsize: int = 4, accelerated: bool = False) -> Sizes:
        """The sizes in a transformers configuration.

        Raises:
            UsageError: it does not describe a decoder that attends.
        """
        text = config.get_text_config(decoder=True)
        heads, hidden = _size(text, "num_attention_heads"), _size(text, "hidden_size")
        return cls(
            layers=_size(text, "num_hidden_layers"),
            query_heads=heads,
            kv_heads=_size(text, "num_key_value_heads", heads),
            head_size=_size(text, "head_dim", hidden // heads),
            hidden=hidden,
            intermediate=_size(text, "intermediate_size", 4 * hidden),
            vocabulary=_size(text, "vocab_size"),
            itemsize=itemsize,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            windows=tuple(w for w in layer_windows(config) if w is not None),
            accelerated=accelerated,
        )

    @property
    def body_parameters(self) -> int:
        """Weights that a token is multiplied with, embeddings apart: as counted, else of a gated feed-forward."""
        if self.active is not None:
            return self.active
        attention = self.hidden * self.head_size * (2 * self.query_heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the output embedding."""
        return self.hidden * self.vocabulary

    @property
    def model_bytes(self) -> int:
        """The model itself; the head is kept in float32 beside a narrower model."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        wide_head = self.head_parameters * 4 if self.itemsize < 4 else 0
        weights = self.body_parameters + embeddings if self.parameters is None else self.parameters
        return weights * self.itemsize + wide_head

    def cache_bytes(self, tokens: int, held: int | None = None) -> int:
        """Keys and values of so many tokens; a layer with a window holds no more than that.

        Args:
            held: entries of each other layer and head; None: all tokens.
        """
        full = (self.layers - len(self.windows)) * (tokens if held is None else held)
        entries = full + sum(min(window, tokens) for window in self.windows)
        return 2 * self.kv_heads * self.head_size * entries * self.itemsize

    @property
    def wide(self) -> int:
        """Bytes of a number where at least float32 is used."""
        return max(4, self.itemsize)


def forward_operations(sizes: Sizes, before: int, length: int) -> float:
    """Operations of `length` tokens through the body after `before` others: two per weight, and attention."""
    keys = length * before + length * (length + 1) / 2
    return 2.0 * sizes.body_parameters * length + 4.0 * sizes.layers * sizes.query_heads * sizes.head_size * keys


def head_operations(sizes: Sizes, length: int) -> float:
    """Operations of the head on so many tokens."""
    return 2.0 * sizes.head_parameters * length


def _size(config: PreTrainedConfig, name: str, default: int | None = None) -> int:
    """A number of a configuration; `default` where it has none."""
    value = getattr(config, name, None) or default
    if isinstance(value, list | tuple):  # one a layer (Gemma 3n)
        value = max(value)
    if not isinstance(value, int) or value < 1:
        raise UsageError(
            f"the configuration ({config.model_type}) has {getattr(config, name, None)!r} for {name}, where a decoder "
            "that attends has a number above 0; name another model"
        )
    return value
