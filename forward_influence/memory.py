"""How much memory a measurement takes above the model, as a formula, and what follows: a chunk size, or a refusal.

    context cache        2 L H d n                    kept for a document
    one continuation's   2 L H d (n + m)              one at a time, whatever the number of conditions
    hidden states        (1 + group) m h              `group` conditions wait for the head, at most 512 MB of them
    continuation's own   2 L H d m                    direct effects only: the full run's keys and values
    head                 3 rows V                     float32; rows from the vocabulary alone, 256 at 49,152 words
    body                 chunk (2 f + 8 h) + mask     one layer's activations

times the bytes of a number. While continuations run, the head's blocks are not there, and the other way round: the peak
is the larger of both. There is no term with m V, n^2 or conditions x cache.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from forward_influence.errors import UsageError
from forward_influence.heads import head_block

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from forward_influence.request import Request

#: Of what is free, so much is taken when nothing else is asked for.
DEFAULT_SHARE = 0.8
CHUNKS = (512, 256, 128, 64)
_HIDDEN_BYTES = 1 << 29


@dataclass(frozen=True)
class Sizes:
    """What memory and time depend on, read from a configuration: no weights are needed.

    Attributes:
        layers, query_heads, kv_heads, head_size, hidden, intermediate, vocabulary: of the decoder.
        itemsize: bytes of a number in the model's dtype.
        tied: whether input and output embedding are one.
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

    @classmethod
    def of(cls, config: PreTrainedConfig, itemsize: int = 4) -> Sizes:
        """The sizes in a transformers configuration."""
        text = config.get_text_config(decoder=True)
        heads = int(text.num_attention_heads)
        hidden = int(text.hidden_size)
        return cls(
            layers=int(text.num_hidden_layers),
            query_heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_size=int(getattr(text, "head_dim", None) or hidden // heads),
            hidden=hidden,
            intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
            vocabulary=int(text.vocab_size),
            itemsize=itemsize,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
        )

    @property
    def body_parameters(self) -> int:
        """Weights of the decoder's matrices, embeddings apart (gated feed-forward, as most have)."""
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
        return (self.body_parameters + embeddings) * self.itemsize + wide_head

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_size * tokens * self.itemsize


@dataclass(frozen=True)
class Peak:
    """Bytes above the model, term by term; see the module."""

    context_cache: int
    continuation_cache: int
    hidden_states: int
    own_entries: int
    head: int
    body: int

    @property
    def total(self) -> int:
        """The larger of the two phases."""
        kept = self.context_cache + self.hidden_states + self.own_entries
        return kept + max(self.continuation_cache + self.body, self.head)

    def described(self) -> str:
        """The terms in one line, megabytes."""
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name) / 1e6:,.0f} MB" for f in fields(self))


def peak(sizes: Sizes, context: int, continuation: int, conditions: int, chunk: int, direct: bool = False) -> Peak:
    """Peak memory above the model of measuring one document.

    Args:
        conditions: per segment.
        direct: whether direct effects are measured.
    """
    one = continuation * sizes.hidden * sizes.itemsize
    group = min(conditions, max(1, _HIDDEN_BYTES // max(1, one)))
    controls = min(320, 2 * continuation) * sizes.hidden * sizes.itemsize
    activations = chunk * (2 * sizes.intermediate + 8 * sizes.hidden) * sizes.itemsize
    mask = chunk * (context + continuation) * (1 + 4)
    return Peak(
        context_cache=sizes.cache_bytes(context),
        continuation_cache=sizes.cache_bytes(context + continuation),
        hidden_states=one * (1 + group) + controls,
        own_entries=sizes.cache_bytes(continuation) if direct else 0,
        head=3 * head_block(sizes.vocabulary) * sizes.vocabulary * 4,
        body=activations + mask,
    )


def peak_of_request(sizes: Sizes, request: Request, chunk: int) -> Peak:
    """The same for a request."""
    from forward_influence.conditions import expand

    conditions = len(expand(request, "", 0, tuple(range(sizes.layers))))
    return peak(sizes, request.context, request.continuation, conditions, chunk, "direct" in request.effects)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where that cannot be found out."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    return None


def parse_bytes(text: str) -> int:
    """Bytes of "8GB", "500MB", "1.5GiB" or a plain number.

    Raises:
        UsageError: anything else.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    stripped = text.strip().upper()
    number = stripped.rstrip("KMGIB")
    try:
        value = float(number) * units[stripped[len(number) :].strip()]
    except (ValueError, KeyError):
        raise UsageError(f"--memory-limit {text} is no amount of memory; give 8GB or 500MB, say") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"--memory-limit {text} is no amount of memory; give 8GB or 500MB, say")
    return int(value)


def fitting_chunk(sizes: Sizes, request: Request, limit: int | None, largest: int) -> int:
    """The largest chunk, at most `largest`, with which a request stays within `limit` bytes above the model.

    Raises:
        UsageError: none does; with the formula's figure.
    """
    if limit is None:
        return largest
    tried = [largest, *(chunk for chunk in CHUNKS if chunk < largest)]
    for chunk in tried:
        if peak_of_request(sizes, request, chunk).total <= limit:
            return chunk
    least = peak_of_request(sizes, request, tried[-1])
    raise UsageError(
        f"this needs {least.total / 1e9:.2f} GB above the model ({least.described()}), but {limit / 1e9:.2f} GB are "
        "allowed; use a smaller --context or --continuation, a narrower --dtype, or raise --memory-limit"
    )


def choose_chunk(model: Any, request: Request, limit: str | None, largest: int) -> int:
    """`fitting_chunk` for a loaded model; without a limit, 80% of what is free on its device."""
    free = None if limit is not None else free_bytes(model.device)
    allowed = parse_bytes(limit) if limit is not None else None if free is None else int(DEFAULT_SHARE * free)
    return fitting_chunk(Sizes.of(model.model.config, model.dtype.itemsize), request, allowed, largest)
