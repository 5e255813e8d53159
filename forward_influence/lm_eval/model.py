"""The model that the harness sees: a causal model whose cache is compressed after the context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from torch import Tensor
from tqdm import tqdm

from forward_influence.answering import answer_side_by_side, answer_while_compressing, end_tokens
from forward_influence.cache import SelectiveCache
from forward_influence.compression import Outcome
from forward_influence.contenders import Contender, contenders, needs_of
from forward_influence.errors import UsageError
from forward_influence.forward import continuation_hidden
from forward_influence.instrument import Instrument
from forward_influence.models import load_model
from forward_influence.prompts import PROTOCOLS
from forward_influence.protection import parse_protected
from forward_influence.recording import record
from forward_influence.tokenizing import encode, leading_tokens
from forward_influence.trace import Trace

_log = logging.getLogger(__name__)
_CHUNK = 512
_ANSWER_TOKENS = 256


class CompressedModel(TemplateLM):
    """`--model forward_influence`.

    Requests run one by one. The context but for its last token is read once and its cache compressed; that last token
    is read from what is left, and the answer generated or the continuation scored. `loglikelihood_rolling` compresses
    the first half of every window and scores the second.

    Args:
        pretrained: a name of the catalogue, a folder, a GGUF file or a hub id.
        compressor: "full", or a compressor with a `budget`.
        budget: fraction of the tokens seen, or a count of tokens; every compressor but "full" needs one.
        match_held: instead of a budget: entries to hold per layer and head, a prompt that is kept whole included.
        protect_last: tokens always kept at the end, a count or a share of what is kept; by default 64, or the rule's
            own window.
        every: compress again after so many generated tokens.
        protocol: "seen": all of the context is compressed; "unseen": the question of the task's document
            (`question_field`) is read after compression.
        seed: of random rules.
        window: tokens of a rolling window.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str = "smollm2-135m",
        compressor: str = "full",
        budget: str | float | int | None = None,
        every: int | None = None,
        match_held: int | None = None,
        protect_last: str | float | int | None = None,
        protocol: str = "seen",
        question_field: str = "question",
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        window: int = 2048,
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
        if str(batch_size) not in ("1", "auto"):
            raise UsageError(f"--batch_size {batch_size}: a selective cache holds one sequence; use --batch_size 1")
        if budget is not None and match_held is not None:
            raise UsageError("--model_args budget and match_held both say how much is held; give one of them")
        if compressor != "full" and budget is None and match_held is None:
            raise UsageError(
                f"{compressor} compresses nothing without a budget; add one, "
                f"--model_args compressor={compressor},budget=0.25"
            )
        self.contender: Contender = contenders(
            [compressor],
            [] if compressor == "full" else [str(budget)],
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
        self.seed, self.window = int(seed), int(window)
        self._device = self.loaded.device
        self._needs = needs_of([self.contender])
        self._leading = leading_tokens(self.tokenizer)
        self._last: tuple[tuple[int, ...], Trace] | None = None

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
        """Positions of the model."""
        return int(self.loaded.anatomy.positions or 1 << 20)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; by default with what the tokenizer puts before a text, once."""
        ids = encode(self.tokenizer, string)
        wanted = add_special_tokens if add_special_tokens is not None else True
        return self._leading + ids if wanted and ids[: len(self._leading)] != self._leading else ids

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
        """Answers, one per request: greedy, or sampled where the request says `do_sample`."""
        return [self._generate(r) for r in tqdm(requests, disable=disable_tqdm, desc="generating")]

    def _generate(self, request: Any) -> str:
        text, settings = request.args
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else [u for u in until if u]
        limit = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or _ANSWER_TOKENS)
        parts = self._split(text, request.doc)
        room = self.max_length - limit - len(parts[1])
        if room < 1:
            raise UsageError(f"max_gen_toks={limit} leaves no room for the context; the model has {self.max_length}")
        if len(parts[0]) > room:
            _log.warning("context of %d tokens cut to its last %d", len(parts[0]), room)
        context, question = (torch.tensor(p, dtype=torch.int64) for p in (parts[0][-room:], parts[1]))
        sampling = _sampling(settings)
        if sampling or self.contender.every is not None:
            grown = answer_while_compressing(
                self.loaded, self.contender, context, question, limit, until, self.seed, sampling
            )
            self.outcomes.append(grown.outcome)
            return grown.answer.text
        trace = self._trace(context.tolist(), len(question) + limit)
        cache = self._compressed(trace, 0)
        (answer,) = answer_side_by_side(self.loaded, [cache], question, limit, until, False)
        self.cache_hook.add_partial("generate_until", request.args, answer.text)
        return answer.text

    def _split(self, text: str, document: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Token ids of what is compressed and of what is read after that.

        Raises:
            UsageError: the protocol is "unseen", and where the question begins cannot be told.
        """
        if self.protocol == "seen":
            ids = self.tok_encode(text)
            ids = ids if len(ids) > 1 else [self.prefix_token_id, *ids]
            return ids[:-1], ids[-1:]
        question = document.get(self.question_field)
        at = text.rfind(question) if isinstance(question, str) and question else -1
        if at <= 0:
            raise UsageError(
                f"protocol=unseen: the prompt of this task does not hold its document's {self.question_field!r}; "
                "use protocol=seen, or name the field with question_field=..."
            )
        return self.tok_encode(text[:at]), encode(self.tokenizer, text[at:])

    def _trace(self, context: Sequence[int], follows: int) -> Trace:
        """The recorded context; the last one is kept, for the choices of one question share it."""
        key = tuple(context)
        if self._last is None or self._last[0] != key:
            tokens = torch.tensor(context, dtype=torch.int64)
            self._last = (key, record(self.loaded, tokens, self._needs, span=len(context) + follows))
        return self._last[1]

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
        """Log-likelihood (nats) of each continuation after its compressed context, and whether it is the greedy one."""
        found = []
        for pair, context, continuation in tqdm(requests, disable=disable_tqdm, desc="scoring"):
            room = self.max_length - len(continuation)
            log_p, best = self._score(context[-room:], continuation)
            found.append((log_p, best))
            if pair[0]:
                self.cache_hook.add_partial("loglikelihood", pair, (log_p, best))
        return found

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """The context but for its last token is compressed, so that the first token scored depends on that too."""
        read = torch.tensor([*context[-1:], *continuation], dtype=torch.int64, device=self.loaded.device)
        targets = read[1:]
        cache = SelectiveCache(self.loaded.model.config, span=len(read))
        if len(context) > 1:
            trace = self._trace(context[:-1], len(read))
            cache = self._compressed(trace, len(read))
        with torch.no_grad(), Instrument(self.loaded.model, cache=cache) as instrument:
            hidden = continuation_hidden(self.loaded.model, read[:-1], instrument, _CHUNK)
            return self._log_likelihood(hidden, targets)

    def _log_likelihood(self, hidden: Tensor, targets: Tensor) -> tuple[float, bool]:
        total, best = 0.0, True
        for rows, wanted in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True):
            logits = self.loaded.anatomy.head(rows)
            log_p = logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            total += float(log_p.double().sum())
            best = best and bool((logits.argmax(-1) == wanted).all())
        return total, best

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, window by window.

        A text that fits into one window has no context to compress and is scored with the full cache; of longer ones
        every later window is half context, compressed, and half scored.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        size = min(self.window, self.max_length)
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="scoring texts"):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, size, max(1, size // 2))
            total = sum(self._score(*make_disjoint_window(pair))[0] for pair in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            totals.append(total)
        return totals


def _sampling(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of `generate` for a request that samples; None for greedy ones."""
    temperature = float(settings.get("temperature") or 0)
    if not settings.get("do_sample") or temperature == 0:
        return None
    known = {key: settings[key] for key in ("top_k", "top_p", "min_p") if key in settings}
    return {"do_sample": True, "temperature": temperature, **known}
