"""Generating text with a compressed cache, as a library call: the unmodified `generate`, streamed, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextStreamer

from forward_influence.compression.compressor import Compressor
from forward_influence.compression.drawing import FirstToken, Sampling
from forward_influence.compression.session import compress
from forward_influence.compression.side_by_side import BATCH, alike
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
        together: texts that were generated side by side; the seconds are of all of them.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    stats: Stats
    remarks: tuple[str, ...] = ()
    together: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Of decoding; NaN where only one token was generated."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else float("nan")


class _Streamer(TextStreamer):
    """Hands finished words on."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

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
    asked = _Asked(_checked(model, prompt, chat, system, max_new_tokens, seed), seed)
    drawing = Sampling(max_new_tokens, temperature, top_p)
    return _written(model, [asked], compressor, drawing, _Streamer(model.tokenizer, show))[0]


def generate_all(
    model: Model,
    prompts: Sequence[str],
    compressor: Compressor,
    *,
    answers: int = 1,
    batch: int = BATCH,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    system: str | None = None,
    done: Callable[[int, Generated], None] = lambda place, found: None,
) -> list[Generated]:
    """Generate after several prompts side by side, each as `generate` would alone, up to rounding.

    Prompts that would not be what they are alone run one by one: of models whose rotary embedding depends on how long a
    sequence gets, say.

    Args:
        answers: to each prompt; the j-th is drawn with seed + j.
        batch: how many are generated side by side, at most.
        max_new_tokens, temperature, top_p, seed, chat, system: as of `generate`.
        done: is given each answer's place in the result and the answer, batch by batch.

    Returns:
        All answers to the first prompt, then to the second, and so on.

    Raises:
        UsageError: no prompt, or as `generate`.
        ForwardInfluenceError: a prompt has tokens that the model does not know.
    """
    for name, value in (("answers", answers), ("batch", batch)):
        if value < 1:
            raise UsageError(f"`{name}` {value} is too small; give at least 1")
    if not prompts:
        raise UsageError("no prompt; give at least one")
    if answers > 1 and temperature == 0:
        raise UsageError(f"{answers} answers at temperature 0 would be the same; give a temperature, 0.7 say")
    tokens = [_checked(model, prompt, chat, system, max_new_tokens, seed + answers - 1) for prompt in prompts]
    asked = [_Asked(ids, seed + j) for ids in tokens for j in range(answers)]
    drawing = Sampling(max_new_tokens, temperature, top_p)
    alone = temperature > 0 and getattr(model.model.generation_config, "watermarking_config", None) is not None
    found: dict[int, Generated] = {}
    for group in alike(model, [len(one.tokens) + max_new_tokens for one in asked], 1 if alone else batch):
        for place, one in zip(group, _written(model, [asked[i] for i in group], compressor, drawing), strict=True):
            found[place] = one
            done(place, one)
    return [found[place] for place in range(len(asked))]


@dataclass(frozen=True)
class _Asked:
    """A prompt's token ids, and the seed of its draws."""

    tokens: list[int]
    seed: int


def _checked(model: Model, prompt: str, chat: bool | None, system: str | None, new: int, seed: int) -> list[int]:
    """A prompt's token ids, if the model can go on from them.

    Raises:
        UsageError: it cannot.
    """
    tokens = prompt_tokens(model.tokenizer, prompt, chat, system)
    require_known(model, tokens, "the prompt")
    check_generation(len(tokens), new, seed, model.anatomy.positions, model.spec)
    return tokens


def _written(
    model: Model, asked: Sequence[_Asked], compressor: Compressor, drawing: Sampling, streamer: _Streamer | None = None
) -> list[Generated]:
    """What follows prompts in one batch."""
    width = max(len(one.tokens) for one in asked)
    settings, remarks = for_people(model.model, drawing.new, drawing.temperature, drawing.top_p)
    ids = torch.full((len(asked), width), int(settings.pad_token_id), device=model.device)
    mask = torch.zeros_like(ids)
    for row, shown, one in zip(ids, mask, asked, strict=True):
        row[width - len(one.tokens) :] = torch.tensor(one.tokens, device=model.device)
        shown[width - len(one.tokens) :] = 1
    more: dict[str, Any] = {} if streamer is None else {"streamer": streamer}
    if len(asked) > 1:
        more |= drawing.row_by_row(settings, [one.seed for one in asked])
    seeds = [one.seed for one in asked]
    devices = [model.device] if model.device.type == "cuda" else []
    span = width + drawing.new
    with (
        torch.random.fork_rng(devices=devices),
        compress(model, [compressor] * len(asked), seed=seeds, span=span) as cache,
    ):
        torch.manual_seed(asked[0].seed)
        watch = FirstToken()
        more["stopping_criteria"] = StoppingCriteriaList([watch, *cache.criteria(settings, model.tokenizer)])
        begun = time.perf_counter()
        output = run_generate(
            model.model, ids, settings, mask, **named_cache(model.model, cache), **more, tokenizer=model.tokenizer
        )
        ended = time.perf_counter()
        stats = cache.row_stats
    found = []
    for row, one, held in zip(output, asked, stats, strict=True):
        new = row[width : width + held.seen - len(one.tokens) + 1].tolist()  # the last token is not read any more
        found.append(
            Generated(
                text=str(model.tokenizer.decode(new, skip_special_tokens=True)),
                prompt_tokens=len(one.tokens),
                new_tokens=len(new),
                prefill_seconds=watch.at - begun,
                decode_seconds=ended - watch.at,
                stats=held,
                remarks=remarks,
                together=len(asked),
            )
        )
    return found
