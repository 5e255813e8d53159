"""Token ids as a model takes them, checked before anything is run.

An id that the embedding has no row for is an IndexError somewhere within a model, and on a GPU the end of the process.
Here it is the failure of one document, which names the document and the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forward_influence.data.cutting import Cut
from forward_influence.errors import ForwardInfluenceError, UsageError

if TYPE_CHECKING:
    from forward_influence.models.loading import Model


def checked_tokens(tokens: Tensor, what: str, positions: int | None = None) -> Tensor:
    """Token ids as they must be: (n,) int64, at least one, within the model's positions.

    Raises:
        UsageError: they are not.
    """
    if not isinstance(tokens, Tensor):
        raise UsageError(f"{what} is a {type(tokens).__name__}; give a tensor of token ids, shape (tokens,)")
    if tokens.dim() != 1 or not len(tokens) or tokens.dtype.is_floating_point or tokens.dtype == torch.bool:
        raise UsageError(
            f"{what} has shape {tuple(tokens.shape)} and dtype {tokens.dtype}; token ids of shape (tokens,) are needed"
        )
    if positions is not None and len(tokens) > positions:
        raise UsageError(f"{what} has {len(tokens)} tokens, but the model was made for {positions} positions")
    return tokens.long()


def require_known(model: Model, tokens: Tensor | Iterable[int], what: str) -> None:
    """Refuse token ids that the model cannot read or give a probability.

    Args:
        tokens: (n,) ids.
        what: whose they are, for the message.

    Raises:
        ForwardInfluenceError: an id below 0, or beyond the rows of the embedding or the head.
    """
    ids = tokens if isinstance(tokens, Tensor) else torch.tensor(list(tokens), dtype=torch.int64)
    rows = _rows(model)
    unknown = ((ids < 0) | (ids >= rows)).nonzero()[:, 0].tolist()
    if not unknown:
        return
    token = int(ids[unknown[0]])
    more = f", and so are {len(unknown) - 1} more" if len(unknown) > 1 else ""
    raise ForwardInfluenceError(
        f"{what}: token {unknown[0]} ({_written(model.tokenizer, token)}) is not in the model's vocabulary, which has "
        f"the ids 0 to {rows - 1}{more}; use the tokenizer that belongs to the model, or leave this text out"
    )


def _rows(model: Model) -> int:
    """How many ids a model knows: the rows of its embedding or, where that has fewer, of its head."""
    ends = [model.model.get_input_embeddings(), model.model.get_output_embeddings()]
    weights = [getattr(end, "weight", None) for end in ends]
    return min([int(w.shape[0]) for w in weights if isinstance(w, Tensor)], default=model.anatomy.vocabulary)


def _written(tokenizer: Any, token: int) -> str:
    """An id, and how the tokenizer writes it where it has it."""
    written = tokenizer.convert_ids_to_tokens(token) if tokenizer is not None and 0 <= token < len(tokenizer) else None
    return f"id {token}" if written is None else f"id {token}, {written!r}"


def checked_segments(model: Model, document: Cut, context: int, continuation: int = 0) -> tuple[Tensor, ...]:
    """A document's segments, each with enough tokens, which the model knows.

    Args:
        context, continuation: tokens that are needed of each; what follows them is not looked at.

    Returns:
        Tensors (n,) int64; n is at least context + continuation.

    Raises:
        ForwardInfluenceError: what is wrong with the document; others can be measured all the same.
    """
    name = document.document.name
    if not document.segments:
        raise ForwardInfluenceError(f"{name} has no segments, so that there is nothing to measure; leave it out")
    checked = []
    for number, tokens in enumerate(document.segments):
        what = name if len(document.segments) == 1 else f"{name}, segment {number}"
        try:
            checked.append(checked_tokens(tokens, what))
        except UsageError as error:
            raise ForwardInfluenceError(str(error)) from error
        if len(tokens) < context + continuation:
            needed = f"{context} + {continuation}" if continuation else str(context)
            raise ForwardInfluenceError(
                f"{what} has {len(tokens)} tokens, fewer than the {needed} asked for; ask for less, or leave it out"
            )
        require_known(model, checked[-1][: context + continuation], what)
    return tuple(checked)
