"""The model that the harness sees: a causal model whose cache is compressed after the context.

With the full cache it is the harness's own `hf` model: the same token ids, windows, refusals and numbers. The texts of
requests are tokenised, cut at the front and ended as that does it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from torch import Tensor
from tqdm import tqdm

from forward_influence.compression import Compressor, Outcome
from forward_influence.compression.contenders import Contender, contenders, needs_of
from forward_influence.errors import UsageError
from forward_influence.evaluation.answering import (
    Asking,
    answer_as_asked,
    answer_side_by_side,
    answer_while_compressing,
    end_tokens,
)
from forward_influence.evaluation.prompts import PROTOCOLS
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary_span import depends_on_length
from forward_influence.integrations.lm_eval.asking import Asked
from forward_influence.integrations.lm_eval.batches import Prepared, batch_size_of, batches_of
from forward_influence.integrations.lm_eval.reading import request_prompt, rolling_windows
from forward_influence.models.loading import load_model
from forward_influence.models.token_ids import require_known
from forward_influence.selectors.protection import parse_protected
from forward_influence.storage.evaluation import FULL
from forward_influence.tracing.recorder import record
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK

_log = logging.getLogger(__name__)
#: Positions of a model that does not say how many it was made for, as the harness takes it.
_POSITIONS = 2048
#: What tokenizers say that set no limit.
_UNBOUNDED = 1 << 60


class CompressedModel(TemplateLM):
    """`--model forward_influence`.

    What is to be compressed is read once and its cache compressed; the rest of the prompt is read from what is left,
    and the answer generated or the continuation scored.

    Args:
        pretrained: a name of the catalogue, a folder, a GGUF file or a hub id.
        compressor: "full", or a compressor with a `budget`.
        budget: fraction of the tokens seen, or a count of tokens; every compressor but "full" needs one.
        match_held: instead of a budget: entries to hold per layer and head, a prompt that is kept whole included.
        protect_last: tokens always kept at the end, a count or a share of what is kept; by default 64, or the rule's
            own window.
        every: compress again after so many generated tokens.
        protocol: "seen": the context and the question are compressed, and what leads from the question to the answer
            is read after that; "unseen": the question is read after that too.
        question_field: the field of a task's documents that holds the question. Without it `question`; where a
            document does not say where its question ends, "seen" compresses all but the prompt's last token.
        seed: of random rules.
        max_length: tokens that the model may read at once; default: as many as it was made for.
        window: of these, how many `loglikelihood_rolling` reads at once; default: all.
        rolling_context: how many tokens of such a window come before those that are scored. The harness has 1, of
            which nothing can be compressed: a compressor needs a number, and the full cache beside it the same.
        batch_size: how many greedy answers are generated side by side, each as it would be alone, up to rounding;
            `auto` is 8, or `max_batch_size` if that is less. Contexts are read, and continuations scored, one by one.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str = "smollm2-135m",
        compressor: str = FULL,
        budget: str | float | int | None = None,
        every: int | None = None,
        match_held: int | None = None,
        protect_last: str | float | int | None = None,
        protocol: str = "seen",
        question_field: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        max_length: int | None = None,
        window: int | None = None,
        rolling_context: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise UsageError(f"--model_args {', '.join(sorted(others))}: unknown to --model forward_influence")
        if protocol not in PROTOCOLS:
            raise UsageError(f"protocol {protocol} is unknown; it is seen or unseen")
        self._batch = batch_size_of(batch_size, max_batch_size)
        if budget is not None and match_held is not None:
            raise UsageError("--model_args budget and match_held both say how much is held; give one of them")
        if compressor != FULL and budget is None and match_held is None:
            raise UsageError(
                f"{compressor} compresses nothing without a budget; add one, "
                f"--model_args compressor={compressor},budget=0.25"
            )
        self.contender: Contender = contenders(
            [compressor],
            [] if compressor == FULL else [str(budget)],
            every,
            match_held=[] if match_held is None else [match_held],
            protect_last=None if protect_last is None else parse_protected(protect_last),
        )[-1]
        self.outcomes: list[Outcome] = []
        # The harness says cuda:0 unless told otherwise, also where there is none; so does its own model.
        wanted = "auto" if device is None or ("cuda" in device and not torch.cuda.is_available()) else str(device)
        self.loaded = load_model(
            pretrained, device=wanted, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        if self.loaded.tokenizer is None:
            raise UsageError(f"{pretrained} has no tokenizer")
        self.tokenizer = self.loaded.tokenizer
        self.protocol, self.question_field = protocol, question_field
        self.seed, self._device = int(seed), self.loaded.device
        self._max_length = self._positions(max_length)
        self.window, self.rolling_context = self._rolling(window, rolling_context)
        self._needs = needs_of([self.contender])
        self._last: tuple[object, Trace] | None = None

    def _positions(self, asked: int | None) -> int:
        """Tokens that the model may read at once, as the harness takes them from a configuration."""
        config = text_config(self.loaded.model.config)
        said = [getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx")]
        said.append(getattr(self.tokenizer, "model_max_length", None))
        made_for = next((int(n) for n in said if n is not None and n < _UNBOUNDED), _POSITIONS)
        if asked is not None and int(asked) < 1:
            raise UsageError(f"max_length={asked}: a model reads at least one token")
        return made_for if asked is None else int(asked)

    def _rolling(self, window: int | None, context: int | None) -> tuple[int, int | None]:
        """Tokens of a rolling window and, of those, of its context; None where that has to be said."""
        size = min(int(window or self._max_length), self._max_length)
        if context is None:
            return size, 1 if self.contender.compressor.is_full else None
        if not 1 <= int(context) < max(size, 2):
            raise UsageError(f"rolling_context={context} leaves nothing to score in a window of {size}; give less")
        return size, int(context)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ids = end_tokens(self.loaded)
        return int(self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else next(iter(ids), 0))

    @property
    def prefix_token_id(self) -> int:
        """What a text without context begins with."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names request caches."""
        return self.loaded.spec.replace("/", "__")

    @property
    def max_length(self) -> int:
        """Tokens that the model may read at once."""
        return self._max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; by default with the tokenizer's special tokens, unless the text begins with such a one."""
        special = self._special(string) if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"])

    def _special(self, text: str) -> bool:
        return not has_bos_prefix(text, self.tokenizer.decode([self.prefix_token_id]))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text.

        Raises:
            UsageError: the model has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise UsageError(f"{self.loaded.spec} has no chat template; leave --apply_chat_template out")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, one per request: greedy from the model's own logits, but for what the task's settings ask.

        Raises:
            UsageError: settings that cannot be with a compressed cache, or no room for the context.
        """
        prepared = [self._prepared(request) for request in requests]
        texts: dict[int, str] = {}
        with tqdm(total=len(prepared), disable=disable_tqdm, desc="generating") as bar:
            for group in batches_of(self.loaded, prepared, self._batch):
                for i, text in zip(group, self._answers([prepared[i] for i in group]), strict=True):
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    texts[i] = text
                bar.update(len(group))
        return [texts[i] for i in range(len(prepared))]

    def _prepared(self, request: Any) -> Prepared:
        """A request's tokens, cut to what the model can read, and how it is to be answered."""
        text, given = request.args
        asked = Asked.of(given, self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False))
        room = self.max_length - asked.tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks={asked.tokens} leaves no room for the context; the model reads {self.max_length}"
            )
        special = not has_bos_prefix(text, self.tokenizer.bos_token)
        prompt = request_prompt(self.tokenizer, text, request.doc, self.protocol, self.question_field, special)
        first, rest = prompt.parts(self.protocol)
        if len(first) + len(rest) == 0:
            rest = torch.tensor([self.prefix_token_id])
        context, question = self._fitting(first, rest, room)
        limit = asked.tokens if asked.total is None else asked.total - len(context) - len(question)
        if limit < 1:
            raise UsageError(f"max_length={asked.total} of generation_kwargs is no longer than the prompt; give more")
        require_known(self.loaded, torch.cat([context, question]), "a request")
        return Prepared(context, question, limit, asked)

    def _answers(self, together: Sequence[Prepared]) -> list[str]:
        if len(together) == 1:
            (one,) = together
            return [self._answer(one.context, one.question, one.limit, one.asked)]
        asked = [Asking(self._compressor(one.context), one.context, one.question) for one in together]
        grown = answer_while_compressing(self.loaded, asked, together[0].limit, together[0].asked.until)
        self.outcomes += [self._outcome(one.context, each.outcome) for one, each in zip(together, grown, strict=True)]
        return [each.answer.text for each in grown]

    def _outcome(self, context: Tensor, found: Outcome) -> Outcome:
        """What is counted of a request: where nothing is compressed after the context, what it held of that alone."""
        if self.contender.every is not None or found.ends is not None or not len(context):
            return found
        layers, heads = found.counts.shape
        return Outcome.of(None, (0, 0), (layers, heads, len(context)))

    def _compressor(self, context: Tensor) -> Compressor:
        """Of a request, seeded; nothing is compressed of a prompt of one token."""
        alone = not len(context) and self.contender.every is None
        return (Contender(FULL, "1.0") if alone else self.contender).seeded(self.seed)

    def _fitting(self, context: Tensor, rest: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """What is compressed and what is read after that, cut at the front to `room` tokens.

        Raises:
            UsageError: nothing to compress is left of the context.
        """
        dropped = len(context) + len(rest) - room
        if dropped <= 0:
            return context, rest
        _log.warning("a prompt of %d tokens is cut to its last %d", len(context) + len(rest), room)
        if 0 < len(context) <= dropped and not self.contender.compressor.is_full:
            raise UsageError(
                f"{len(rest)} tokens are read after the context, which leaves no room for it: {room} tokens can be read"
            )
        return context[dropped:], rest[max(0, dropped - len(context)) :]

    def _answer(self, context: Tensor, question: Tensor, limit: int, asked: Asked) -> str:
        if asked.settings or self.contender.every is not None or not len(context):
            one = Asking(self._compressor(context), context, question)
            if asked.settings:
                grown = answer_as_asked(self.loaded, one, limit, asked.until, asked.settings)
            else:
                (grown,) = answer_while_compressing(self.loaded, [one], limit, asked.until)
            self.outcomes.append(grown.outcome)
            return grown.answer.text
        trace = self._trace(context, len(question) + limit)
        cache = self._compressed(trace, 0)
        (answer,) = answer_side_by_side(self.loaded, [cache], question, limit, asked.until)
        return answer.text

    def _trace(self, context: Tensor, follows: int) -> Trace:
        """The recorded context; the last one is kept, for the choices of one question share it.

        How much follows decides which layers count as full (a window that covers everything is none), and rotary
        factors where they depend on the length.
        """
        span = len(context) + follows
        length = span if depends_on_length(self.loaded.model) else None
        key = (tuple(context.tolist()), self.loaded.anatomy.full_layers(span), length)
        if self._last is None or self._last[0] != key:
            self._last = (key, record(self.loaded, context, self._needs, span=span))
        return self._last[1]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation after its compressed context, and whether it is the greedy one.

        Raises:
            UsageError: a continuation without a token of its own, or longer than the model reads at once.
        """
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="scoring"):
            context, continuation = request.args
            ids, scored = self._pair(context, continuation)
            compressed = len(ids) - 1
            if context.strip():
                text = context.rstrip()  # as `_encode_pair` has it, which gives the blanks to the continuation
                prompt = request_prompt(
                    self.tokenizer, text, request.doc, self.protocol, self.question_field, self._special(text)
                )
                compressed = len(prompt.parts(self.protocol)[0])
            answer = self._score(ids, scored, compressed)
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
            found.append(answer)
        return found

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of what is scored after it."""
        if context:
            ids, scored = self._encode_pair(context, continuation)
        else:
            ids, scored = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if scored[:1] == ids:
                ids, scored = scored[:1], scored[1:]
        if not ids or not scored:
            which = "context" if not ids else "continuation"
            raise UsageError(
                f"the {which} has no token of its own in context {context[-40:]!r} and continuation "
                f"{continuation[:40]!r}, so that nothing can be scored (the harness's own model refuses it too)"
            )
        return ids, scored

    def _compressed(self, trace: Trace, room: int) -> SelectiveCache:
        """The context's cache, compressed; what it holds is noted."""
        keep = self.contender.keep(trace, self.seed)
        self.outcomes.append(self.contender.outcome(trace, keep))
        return trace.cache.branch(keep, room)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results' `config`: the compressor, and what it held in entries per layer
        and head, mean over the contexts that were compressed."""
        asked = {"compressor": self.contender.name, "budget": self.contender.budget, "every": self.contender.every}
        if not self.outcomes:
            return asked
        names = ("held", "pinned", "chosen")
        means = {name: sum(getattr(o, name) for o in self.outcomes) / len(self.outcomes) for name in names}
        return {**asked, **means}

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Pairs of token ids, all but the last token of each context compressed."""
        return [
            self._score(context, scored, len(context) - 1)
            for _, context, scored in tqdm(requests, disable=disable_tqdm, desc="scoring")
        ]

    def _score(self, context: Sequence[int], scored: Sequence[int], compressed: int) -> tuple[float, bool]:
        """Log-likelihood of tokens after others, of which the first `compressed` are compressed before more is read.

        What is read ends with the last token but one, so that `max_length` more than that can be given.
        """
        if len(scored) > self.max_length:
            raise UsageError(
                f"a continuation of {len(scored)} tokens is longer than the {self.max_length} that the model reads at "
                "once; use a model of more positions"
            )
        dropped = max(0, len(context) + len(scored) - self.max_length - 1)
        if dropped:
            _log.warning("a context of %d tokens is cut to its last %d", len(context), len(context) - dropped)
        compressed = max(0, compressed - dropped)
        require_known(self.loaded, [*context[dropped:], *scored], "a request")
        first = torch.tensor(context[dropped:], dtype=torch.int64)[:compressed]
        read = torch.tensor([*context[dropped:], *scored], dtype=torch.int64, device=self.loaded.device)[compressed:]
        after, span = len(read) - 1, len(first) + len(read) - 1  # the last token is not read
        cache = SelectiveCache(self.loaded.model.config, span=span)
        if len(first):
            trace = self._trace(first, after)
            cache = self._compressed(trace, after)
        with torch.no_grad(), Instrument(self.loaded.model, cache=cache, span=span) as instrument:
            hidden = continuation_hidden(self.loaded.model, read[:-1], instrument, CHUNK)[-len(scored) :]
            return self._log_likelihood(hidden, read[-len(scored) :])

    def _log_likelihood(self, hidden: Tensor, targets: Tensor) -> tuple[float, bool]:
        total, best = 0.0, True
        for rows, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = self.loaded.anatomy.head(rows)
            log_p = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            total += float(log_p.double().sum())
            best = best and bool((logits.argmax(-1) == wanted).all())
        return total, best

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, window by window, each one's context compressed but for its last token.

        Raises:
            UsageError: a compressor, and the windows leave it nothing to compress.
        """
        if self.rolling_context is None:
            raise UsageError(
                "the harness scores whole texts after one token of context, of which nothing can be compressed; say "
                f"how many of the {self.window} tokens of a window are context, rolling_context={self.window // 2} "
                "say, here and for the full cache beside it"
            )
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="scoring texts"):
            ids = self.tok_encode(request.args[0])
            windows = rolling_windows(ids, self.prefix_token_id, self.window, self.rolling_context)
            total = sum(self._score(context, scored, len(context) - 1)[0] for context, scored in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            totals.append(total)
        return totals
