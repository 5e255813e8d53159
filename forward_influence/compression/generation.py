"""Generating text with a compressed cache, as a library call: the unmodified `generate`, streamed, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from forward_influence.compression.compressor import Compressor
from forward_influence.compression.session import compress
from forward_influence.compression.stats import Stats
from forward_influence.errors import UsageError
from forward_influence.instrument.compat import named_cache
from forward_influence.models.generation_settings import for_people, run_generate
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import require_known
from forward_influence.utils.tokenization import encode, leading_tokens, wants_chat


@dataclass(frozen=True)
class Generated:
    """A text and what it took.

    Attributes:
        text: what was generated, special tokens left out.
        prompt_tokens, new_tokens: how many.
        prefill_seconds: until the first token, compression included.
        decode_seconds: of the tokens after the first, compressions included.
        stats: of the cache at the end.
        remarks: which of the checkpoint's generation settings do not hold, and why.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    stats: Stats
    remarks: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Of decoding; NaN where only one token was generated."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else float("nan")


class _Streamer(TextStreamer):
    """Hands finished words on, and notes when the first token came."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show
        self.first_at: float | None = None
        self._puts = 0

    def put(self, value: Any) -> None:
        """The prompt comes first, then each token."""
        self._puts += 1
        if self._puts == 2:
            self.first_at = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Words that will not change any more."""
        self._show(text)


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase | None, prompt: str, chat: bool | None = None, system: str | None = None
) -> list[int]:
    """A prompt as token ids: one user's message where there is a chat template (or `chat`), else plain text.

    Raises:
        UsageError: an empty prompt, no tokenizer, or chat without a template.
    """
    if tokenizer is None:
        raise UsageError("this model came without a tokenizer, which generating text needs")
    if not prompt.strip():
        raise UsageError("the prompt is empty; give some text")
    if not wants_chat(tokenizer, chat):
        if system:
            raise UsageError("a system message needs a chat template; put it into the prompt")
        return leading_tokens(tokenizer) + encode(tokenizer, prompt)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return encode(tokenizer, str(text))


def check_generation(prompt: int, max_new_tokens: int, seed: int, positions: int | None, spec: str) -> None:
    """Refuse what cannot be generated.

    Args:
        prompt: tokens of the prompt.
        positions: that the model was made for; None sets no limit.
        spec: the model's name.

    Raises:
        UsageError: no new token, a seed beyond 64 bits, or more tokens than positions.
    """
    if max_new_tokens < 1:
        raise UsageError(f"{max_new_tokens} new tokens cannot be generated; give at least 1")
    if abs(seed) >= 1 << 63:
        raise UsageError(f"seed {seed} is too large; give one of at most 18 digits")
    if positions is not None and prompt + max_new_tokens > positions:
        raise UsageError(
            f"a prompt of {prompt} tokens and {max_new_tokens} new ones exceed the {positions} positions of {spec}; "
            "shorten the prompt or generate less"
        )


def generate(
    model: Model,
    prompt: str,
    compressor: Compressor,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    system: str | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> Generated:
    """Generate after a prompt with a cache that compresses itself.

    What bends the choice of tokens (penalties, suppressed and forced tokens, stop strings) is the checkpoint's own;
    see `forward_influence.models.generation_settings.for_people`.

    Args:
        compressor: from `make_compressor`; "full" for the whole cache.
        temperature: 0 is greedy; otherwise tokens are drawn from the whole distribution, but for `top_p`.
        top_p: of sampling.
        seed: of sampling, and of random compressors.
        chat: use the chat template; None: where there is one.
        system: a system message before the prompt.
        show: is given the text as it grows.

    Raises:
        UsageError: a prompt that is empty or, with what is to be generated, beyond the model's positions.
        ForwardInfluenceError: it has tokens that the model does not know.
    """
    tokens = prompt_tokens(model.tokenizer, prompt, chat, system)
    require_known(model, tokens, "the prompt")
    check_generation(len(tokens), max_new_tokens, seed, model.anatomy.positions, model.spec)
    settings, remarks = for_people(model.model, max_new_tokens, temperature, top_p)
    streamer = _Streamer(model.tokenizer, show)
    devices = [model.device] if model.device.type == "cuda" else []
    span = len(tokens) + max_new_tokens
    with torch.random.fork_rng(devices=devices), compress(model, compressor, seed=seed, span=span) as cache:
        torch.manual_seed(seed)
        begun = time.perf_counter()
        output = run_generate(
            model.model,
            torch.tensor(tokens, device=model.device),
            settings,
            **named_cache(model.model, cache),
            streamer=streamer,
            tokenizer=model.tokenizer,
        )
        ended = time.perf_counter()
        stats = cache.stats
    new = output[len(tokens) :].tolist()
    first_at = streamer.first_at or ended
    return Generated(
        text=str(model.tokenizer.decode(new, skip_special_tokens=True)),
        prompt_tokens=len(tokens),
        new_tokens=len(new),
        prefill_seconds=first_at - begun,
        decode_seconds=ended - first_at,
        stats=stats,
        remarks=remarks,
    )
