"""What memory and time depend on, read from a configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import layer_windows
from forward_influence.models.held_bytes import CacheBytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Sizes:
    """What memory and time depend on, read from a configuration: no weights are needed.

    Attributes:
        layers, query_heads, kv_heads, head_size, hidden, intermediate, vocabulary: of the decoder; heads are those of
            its full attention layers, one kv head where a layer holds one latent per token.
        itemsize: bytes of a number in the model's dtype.
        tied: whether input and output embedding are one.
        windows: of the layers that have one, in tokens; 0 of those that hold no entries.
        accelerated: whether the model is not on a processor, where blocks of logits are larger.
        parameters: weights of the whole model, where they were counted (`plan.counted`).
        active: those of the decoder that a token is multiplied with, embeddings apart, where they were counted.
        held: what the model's cache holds, where it was found by running the model (`holding`).
        expanded: numbers per token of the keys and values of all heads, and of the product that they are cut from,
            where each pass makes them of one latent; 0 where the cache holds keys and values themselves.
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
    held: CacheBytes | None = None
    expanded: int = 0

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

    def holding(self, held: CacheBytes, config: PreTrainedConfig) -> Sizes:
        """The same with what the model's cache was found to hold, which configurations name in many ways."""
        if not held.full:
            return replace(self, held=held)
        first, text = held.full[0], config.get_text_config(decoder=True)
        if first.kv_heads > 1 or first.width != _value(text, "kv_lora_rank"):
            return replace(self, held=held, kv_heads=first.kv_heads, head_size=first.width)
        query = text.qk_nope_head_dim + text.qk_rope_head_dim
        expanded = self.query_heads * (query + text.qk_nope_head_dim + text.v_head_dim)
        return replace(self, held=held, kv_heads=1, head_size=query, expanded=expanded)

    @property
    def full(self) -> int:
        """Layers that hold an entry of every token."""
        return self.layers - len(self.windows) if self.held is None else len(self.held.full)

    @property
    def states(self) -> int:
        """Bytes of states that the cache holds beside entries."""
        return 0 if self.held is None else self.held.states

    @property
    def attending(self) -> int:
        """Layers that hold entries, of all tokens or of those within a window."""
        return self.layers - self.windows.count(0) if self.held is None else len(self.held.layers)

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
        """What the cache holds of so many tokens; a layer with a window holds no more than that.

        Args:
            held: entries of each other layer and head; None: all tokens.
        """
        if self.held is not None:
            return self.held.bytes(tokens, held)
        full = self.full * (tokens if held is None else held)
        entries = full + sum(min(window, tokens) for window in self.windows)
        return 2 * self.kv_heads * self.head_size * entries * self.itemsize

    @property
    def wide(self) -> int:
        """Bytes of a number where at least float32 is used."""
        return max(4, self.itemsize)


def forward_operations(sizes: Sizes, before: int, length: int) -> float:
    """Operations of `length` tokens through the body after `before` others: two per weight, and attention."""
    keys = length * before + length * (length + 1) / 2
    return 2.0 * sizes.body_parameters * length + 4.0 * sizes.attending * sizes.query_heads * sizes.head_size * keys


def head_operations(sizes: Sizes, length: int) -> float:
    """Operations of the head on so many tokens."""
    return 2.0 * sizes.head_parameters * length


def _size(config: PreTrainedConfig, name: str, default: int | None = None) -> int:
    """A number of a configuration; `default` where it has none, and the largest where there is one for each layer."""
    found = _value(config, name)
    value = found or default
    if isinstance(value, list | tuple) and len(value) == _value(config, "num_hidden_layers"):  # Gemma 3n
        value = max(value)
    if not isinstance(value, int) or value < 1:
        raise UsageError(
            f"the configuration ({config.model_type}) has {found!r} for {name}, where a decoder that attends has a "
            "number above 0; name another model"
        )
    return value


def _value(config: PreTrainedConfig, name: str) -> Any:
    """What a configuration has under a name; None where it has nothing."""
    try:
        return getattr(config, name, None)
    except Exception:  # Gemma 4 refuses to give what differs from layer to layer: what most have, then
        return config.to_dict().get(name)
