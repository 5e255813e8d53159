"""What a signal is, and a signal while it is recorded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.rotary import Rotation
from forward_influence.tracing.columns import TokenColumns
from forward_influence.tracing.part import Part

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forward_influence.models.sizes import Sizes


@dataclass(frozen=True)
class Cost:
    """Bytes that a signal takes, as the memory formula adds them up.

    Attributes:
        kept: for as long as the trace is.
        recording: on top of it while the context is read.
        choosing: on top of it while a rule chooses, one layer at a time.
    """

    kept: int = 0
    recording: int = 0
    choosing: int = 0


@dataclass(frozen=True)
class Setting:
    """What a recording is made for.

    Attributes:
        anatomy: of the model.
        layers: the full-attention layers, whose entries can be removed.
        device: where values are wanted, whatever devices a model is spread over.
        columns: numbers per token, pruned together when tokens are evicted.
        rotation: the model's rotary embedding, attached, where a signal asks for it.
    """

    anatomy: Anatomy
    layers: tuple[int, ...]
    device: torch.device
    columns: TokenColumns
    rotation: Rotation | None = None


@dataclass(frozen=True)
class Attended:
    """One layer's attention in one pass.

    Attributes:
        layer: index in the model.
        query: (query_heads, q, d) after the rotary embedding.
        key: (kv_heads, k, d) of all that is held, the queries' own tokens included.
        geometry: what the logits depend on beside them.
        before: tokens that went through before this pass.
        visibility: computes `visible`.
    """

    layer: int
    query: Tensor
    key: Tensor
    geometry: Geometry
    before: int
    visibility: Callable[[], Tensor]

    @cached_property
    def visible(self) -> Tensor:
        """Which keys each query sees, (kv_heads | 1, q, k) bool."""
        return self.visibility()


@dataclass(frozen=True)
class Logits:
    """A block of consecutive tokens' logits; good until the next block.

    Attributes:
        rows: (q, vocabulary), what the model predicts after each of the tokens.
        tokens: (q,) their ids; None where the model was given embeddings.
    """

    rows: Tensor
    tokens: Tensor | None
    _memo: dict[Any, Tensor] = field(default_factory=dict)

    def memo(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, once per key: what several signals derive from a block."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


class Recording:
    """A signal while a sequence runs through the model; what it sees it may take in.

    A context comes in chunks, a generation in passes of a prompt and of single tokens: a recording sees the same calls,
    and must give the same values however a sequence is cut.
    """

    def attention(self, attended: Attended) -> None:
        """One full layer's queries and keys in a pass."""

    def hidden(self, outputs: list[Tensor], last: Tensor) -> None:
        """The full layers' outputs (q, hidden) in a pass, and the last layer's; where `Signal.hidden`."""

    def logits(self, block: Logits) -> None:
        """The next tokens' logits; where `Signal.head`."""

    def passed(self, tokens: Tensor | None, hidden: Tensor) -> None:
        """A pass over tokens (q,) is through: `hidden` (q, hidden) are its last states; tokens None for embeddings."""

    def evict(self, layer: int, index: Tensor, holes: Tensor | None) -> None:
        """The layer keeps the entries at `index` (kv_heads, kept); `holes`, of that shape, are those that only pad."""

    def value(self, part: Part) -> Any:
        """What rules read, for what a part of the layers and heads holds."""
        raise NotImplementedError


class Signal:
    """What a pass over a sequence can record for rules to read.

    Attributes:
        name: as rules declare it, in `needs`.
        about: what it is and what it costs, in a line.
        label: what error messages call it.
        default: the number behind the colon where none is given, as in entropy:256; None where it takes none.
        largest: whether the largest number asked for serves all others too.
        family: signals of one family are recorded with one number, the largest; "" for none.
        head: whether it is made of the model's logits.
        hidden: whether it is made of layers' outputs.
        rotation: whether it is made of queries before the rotary embedding.
        live: whether it can be recorded while a sequence grows.
        looks_ahead: whether it is about the continuation, which only a measurement knows; `trace.future` holds it.
        kept: whether traces on disk keep it.
        whole: whether it is about a sequence of which every token is still held.
        reads_again: whether the context goes through the model once more for it.
    """

    name: str = ""
    about: str = ""
    default: int | None = None
    largest: bool = False
    family: str = ""
    head: bool = False
    hidden: bool = False
    rotation: bool = False
    live: bool = True
    looks_ahead: bool = False
    kept: bool = True
    whole: bool = False
    reads_again: bool = False

    @property
    def label(self) -> str:
        """The name, where a signal gives itself no other."""
        return self.name

    def key(self, number: int) -> str:
        """Under what a trace holds it: the need, or the name alone where one recording serves all numbers."""
        return self.name if self.default is None or self.largest else f"{self.name}:{number}"

    def need(self, number: int) -> str:
        """The need that asks for it with this number."""
        return self.name if self.default is None else f"{self.name}:{number}"

    def serves(self, number: int, recorded: Sequence[int], n: int) -> bool:
        """Whether what was recorded with these numbers, none to several, gives it for this one, of n tokens."""
        return any(have >= min(number, n) for have in recorded) if self.largest else number in recorded

    @cached_property
    def origin(self) -> str | None:
        """SHA-256 of the file of a signal of one's own: what another text of it recorded is recorded again.

        "" for signals of this package, whose kept traces have a format of their own; None where there is no file, as in
        a notebook's cell.
        """
        if type(self).__module__.startswith("forward_influence."):
            return ""
        try:
            return hashlib.sha256(Path(inspect.getsourcefile(type(self)) or "").read_bytes()).hexdigest()
        except (OSError, TypeError):
            return None

    def recording(self, number: int, setting: Setting) -> Recording | None:
        """A recording that has seen nothing yet; None where nothing is recorded while a sequence passes."""
        return None

    def ready(self, model: PreTrainedModel) -> Any:
        """What it is without any pass, for signals without a recording."""
        return None

    def of_part(self, value: Any, part: Part) -> Any:
        """What is ready without any pass, for what a part of a compressed cache is about."""
        return value

    def packed(self, value: Any) -> dict[str, Tensor]:
        """A value as named tensors, for the disk."""
        return {"": value}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> Any:
        """The value of such tensors."""
        return tensors[""]

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """Bytes it takes.

        Args:
            sizes: of the model.
            context: tokens.
            chunk: tokens per pass.
        """
        return Cost()


class Ready(Recording):
    """A signal that no pass has to record, beside those that are recorded while a sequence grows."""

    def __init__(self, signal: Signal, value: Any) -> None:
        self._signal, self._value = signal, value

    def value(self, part: Part) -> Any:
        return self._signal.of_part(self._value, part)


def entries(sizes: Sizes, context: int) -> int:
    """Entries of a context's cache that can be removed: full layers x kv heads x tokens."""
    return sizes.full * sizes.kv_heads * context
