"""What a model attends to in a context while it repeats that context: the second reading that KVzip scores by."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import Geometry, attention_logits, causal_tail, softmax_with_sinks
from forward_influence.instrument.forward import forward_hidden
from forward_influence.instrument.instrument import beside
from forward_influence.instrument.output_projection import watched_inputs
from forward_influence.instrument.positions import positions_of
from forward_influence.models.tokenizers import remembered_tokenizer
from forward_influence.selectors.output_norms import output_norms
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.tokenization import encode

FIRST_REQUEST = "\n\nRepeat the previous context exactly."
NEXT_REQUEST = "\n\nRepeat the part of the previous context exactly, starting with"
#: Tokens of the piece before that a later request quotes.
_QUOTED = 8
_MARK = "context goes here"


@dataclass(frozen=True)
class Repetition:
    """One pass: a piece of the context and what is read so that it is repeated.

    Attributes:
        start, end: the piece is the context's tokens start <= i < end.
        tokens: (q,) the request, if any, and the piece again.
    """

    start: int
    end: int
    tokens: Tensor


def repetitions(trace: Trace, piece: int, asked: bool) -> list[Repetition]:
    """The passes of a second reading, as kvpress and the authors' code make them.

    Args:
        piece: tokens of the context that are repeated in one pass.
        asked: whether a request in words comes before each piece, and the end of the chat template's turn after it.

    Raises:
        UsageError: words are wanted and the model came without a tokenizer.
    """
    begin = 0
    ask: dict[bool, list[int]] = {True: [], False: []}  # whether a piece is the first -> token ids
    turn: list[int] = []
    if asked:
        tokenizer = remembered_tokenizer(trace.signal(f"second_reading:{piece}"))
        if tokenizer is None:
            raise UsageError("this model came without a tokenizer, so that it cannot be asked; give asked=false")
        before, turn = _around_a_turn(tokenizer)
        begin = len(before) if before and trace.tokens[: len(before)].tolist() == before else 0
        ask = {True: encode(tokenizer, FIRST_REQUEST), False: encode(tokenizer, NEXT_REQUEST)}
    found = []
    for start in range(begin, trace.n, piece):
        end = min(start + piece, trace.n)
        first = start == begin
        quoted = [] if first or not asked else trace.tokens[max(0, start - _QUOTED) : start].tolist()
        request = trace.tokens.new_tensor([*ask[first], *quoted, *turn])
        found.append(Repetition(start, end, torch.cat([request, trace.tokens[start:end]])))
    return found


def _around_a_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids that the chat template puts before and after what a user says; a line break where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return [], encode(tokenizer, "\n")
    said = [{"role": "user", "content": _MARK}]
    text = str(tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False, enable_thinking=False))
    before, _, after = text.partition(_MARK)
    return encode(tokenizer, before), encode(tokenizer, after)


def reconstruction_scores(trace: Trace, piece: int, sinks: int, asked: bool, weighed: bool) -> Tensor:
    """The most attention that each entry gets from any query of the repetition of its piece.

    For a repeated query, attention is a softmax over the first `sinks` tokens, the piece, and what was read of the
    repetition so far; its maximum over queries and the group's heads is the score. Tokens that are sinks score one more
    than the largest.

    Args:
        piece: tokens that are repeated in one pass.
        weighed: multiply by ||W_O v|| and divide by the norm of what attention reads at the query (KVzip+).

    Returns:
        (layers, kv_heads, tokens), at least float32.

    Raises:
        UsageError: some tokens are not held any more, or the model has no positions for so long a sequence.
    """
    if trace.seen != trace.n:
        raise UsageError("tokens of the context are held no more, so that it cannot be read again")
    model: PreTrainedModel = trace.signal(f"second_reading:{piece}")
    passes = repetitions(trace, piece, asked)
    longest = trace.n + max(len(one.tokens) for one in passes)
    if (positions := positions_of(model.config)) is not None and longest > positions:
        raise UsageError(
            f"reading the context again takes {longest} positions, the model was made for {positions}; use a shorter "
            "context or smaller pieces"
        )
    reading = _Reading(trace, sinks, weighed)
    projections = trace.signal("output_projection").found if weighed else {}
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(watched_inputs(projections, reading.inputs))
        for one in passes:
            cache = trace.cache.branch(None, len(one.tokens))
            reading.begin(one)
            with beside(model, reading, cache, trace.span) as instrument:
                for tokens in one.tokens.split(CHUNK):
                    forward_hidden(model, tokens, instrument)
    scores = torch.stack([reading.scores[layer] for layer in trace.layers])
    scores[..., :sinks] = scores.amax() + 1
    return scores


class _Reading:
    """Scores a piece while it is repeated."""

    def __init__(self, trace: Trace, sinks: int, weighed: bool) -> None:
        self._trace, self._sinks, self._weighed = trace, sinks, weighed
        self._rows = {layer: row for row, layer in enumerate(trace.layers)}
        self.inputs: dict[int, Tensor] = {}
        self.scores: dict[int, Tensor] = {}

    def begin(self, one: Repetition) -> None:
        """The next pass repeats this piece."""
        self._start, self._end = one.start, one.end

    def hidden(self, layer: int, states: Tensor) -> None: ...

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """One layer of a pass: query (1, query_heads, q, d), key (1, kv_heads, context + read so far, d)."""
        if layer not in self._rows:
            return
        if biased:
            raise UsageError("this model adds a position bias to its attention, which a second reading cannot score")
        n, start, end = self._trace.n, self._start, self._end
        sinks = min(self._sinks, start)
        own, length = key[0, :, n:], query.shape[2]
        columns = torch.cat([key[0, :, :sinks], key[0, :, start:end], own], dim=1)
        logits = attention_logits(query[0], columns, geometry)
        seen = F.pad(causal_tail(length, own.shape[1], own.device), (sinks + end - start, 0), value=True)
        weights = softmax_with_sinks(logits.masked_fill(~seen, float("-inf")), geometry.sinks)
        weights = weights[..., sinks : sinks + end - start]
        if self._weighed:
            sizes = self.inputs[layer].to(weights).norm(dim=-1)
            norms = output_norms(self._trace, self._rows[layer], 2)[..., start:end]
            weights = weights / sizes[:, None] * norms[:, :, None].to(weights)
        best = weights.amax((1, 2))
        if layer not in self.scores:
            self.scores[layer] = best.new_zeros(best.shape[0], n)
        self.scores[layer][:, start:end] = torch.maximum(self.scores[layer][:, start:end], best)
