"""From last hidden states to logits: the part of a model that is too large to run on everything at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import text_config
from forward_influence.instrument.instrument import set_aside
from forward_influence.utils.closeness import close
from forward_influence.utils.numerics import at_least_float32

#: Bytes of one block of logits; there are three. 256 rows of 49,152 words on a processor.
_HEAD_BYTES = 3 << 24
_HEAD_BYTES_ACCELERATOR = 1 << 29


class LinearHead:
    """logits = cap(scale * (W h + b)), in float32 at least; `W` is converted once where the model is narrower.

    Args:
        model: the model whose output embedding, scale and soft-cap are taken.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        embedding = model.get_output_embeddings()
        config = text_config(model.config)
        self.weight = at_least_float32(embedding.weight.detach())
        bias = getattr(embedding, "bias", None)
        self.bias = None if bias is None else at_least_float32(bias.detach())
        self.cap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None) or 1.0
        divisor = getattr(config, "logits_scaling", None) or 1.0
        self.scale = float(scale) / float(divisor)

    def __call__(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """(rows, hidden) -> (rows, vocabulary), at least float32; written into `out` where that is possible."""
        hidden = at_least_float32(hidden).to(self.weight.device)
        if self.bias is None and out is not None:
            logits = torch.mm(hidden, self.weight.T, out=out)
        else:
            logits = F.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits.mul_(self.scale) if not logits.requires_grad else logits * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits


class ReplayedHead:
    """The model's own way from hidden states to logits, whatever it is.

    The model runs on one token, and what its decoder returns is replaced by the given hidden states: the code after it
    is the model's own. Logits come in the model's dtype.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """(rows, hidden) -> (rows, vocabulary), at least float32."""

        def replace(module: Any, inputs: Any, output: Any) -> Any:
            output["last_hidden_state"] = hidden[None].to(output["last_hidden_state"].dtype)
            return output

        handle = backbone(self.model).register_forward_hook(replace)
        try:
            token = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
            with set_aside():
                logits = self.model(token, use_cache=False).logits[0]
        finally:
            handle.remove()
        return at_least_float32(logits)


Head = LinearHead | ReplayedHead


def find_head(model: PreTrainedModel, hidden: Tensor, logits: Tensor) -> Head:
    """The head that turns `hidden` (rows, hidden) into the model's own `logits` (rows, vocabulary).

    Raises:
        UsageError: neither way gives the model's logits.
    """
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 5e-2
    for make in (LinearHead, ReplayedHead):
        try:
            head = make(model)
            found = head(hidden)
        except (RuntimeError, TypeError, AttributeError, KeyError):
            continue
        if close(logits, found, tolerance):
            return head
    raise UsageError(
        f"{type(model).__name__}: logits cannot be recomputed from its last hidden states, so it cannot be measured"
    )


class HeadBuffers:
    """Memory for a block of logits of the full run, one of another, and the probabilities: taken once, used throughout.

    Fresh memory of this size would be mapped and zeroed by the system at every block, which costs as much as a tenth of
    the matrix product.
    """

    def __init__(self, head: Head, like: Tensor, rows: int, blocks: int = 3) -> None:
        self._head, self.rows = head, rows
        row = head(like[:1])
        self._blocks = [row.new_empty(rows, row.shape[-1]) for _ in range(blocks)]

    @property
    def probabilities(self) -> Tensor:
        """(rows, vocabulary) of the full run: the last block."""
        return self._blocks[-1]

    def logits(self, which: int, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) of hidden states (rows, hidden)."""
        return self._head(hidden, out=self._blocks[which][: len(hidden)])


def head_rows(head: Head, hidden: Tensor) -> int:
    """Rows of logits at a time, a power of two: the matrix product wants many, memory few.

    It depends on the vocabulary and the device's kind alone, so that results do not depend on what memory is free.
    """
    row = head(hidden[:1])
    return head_block(row.shape[-1], row.element_size(), accelerated=row.device.type != "cpu")


def head_block(vocabulary: int, itemsize: int = 4, accelerated: bool = False) -> int:
    """Rows of a block of logits, a power of two from 16 to 1024."""
    fitting = (_HEAD_BYTES_ACCELERATOR if accelerated else _HEAD_BYTES) // (vocabulary * itemsize)
    return 1 << (min(1024, max(16, fitting)).bit_length() - 1)
