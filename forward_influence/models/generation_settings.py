"""Which generation settings hold; decided here and nowhere else.

A checkpoint brings settings (its generation_config.json), and whoever calls `generate` gives more. Three kinds of
generation differ in what they take:

- *Measuring* (continuations, evaluation, fidelity, the harness) takes `neutral` settings: the model's distributions as
  they are. Of the checkpoint's own only the tokens that end a text hold; what was left out is in the manifest.
- *Writing for people* (`forward-influence generate`) takes `for_people`: what bends the choice of tokens is the
  checkpoint's own, how it is decoded is what the command says.
- *A caller's own `model.generate`* inside `with compress(...)` takes what it is given, as transformers does, but what
  cannot be with a compressed cache: `settled` refuses it.

docs/generation.md goes through the settings one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from forward_influence.errors import UsageError, printable
from forward_influence.instrument.compat import usual_generation_settings

#: What chooses tokens from logits, ends a text, or says what is returned: as it is with any other cache.
HONOURED = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "do_sample",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "eos_token_id",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "max_length",
        "max_new_tokens",
        "max_time",
        "min_length",
        "min_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "num_return_sequences",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "remove_invalid_values",
        "renormalize_logits",
        "repetition_penalty",
        "return_dict_in_generate",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "typical_p",
        "watermarking_config",
    }
)

#: What belongs to beams, assistants, caches or models of other kinds: without beams and with a cache that is given it
#: changes nothing.
WITHOUT_EFFECT = frozenset(
    {
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "diversity_penalty",
        "early_stopping",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "speculation_type",
        "target_lookbehind",
    }
)

#: What a compressed cache sees to itself, and the value that leaves it to it: it reads long prompts in chunks anyway,
#: and a prompt that `generate` cuts up would be compressed after its first piece.
REPLACED: dict[str, Any] = {"prefill_chunk_size": None}


@dataclass(frozen=True)
class Refusal:
    """A setting that cannot be with a compressed cache.

    Attributes:
        wrong: whether a value is one that cannot be.
        why: the reason, for people.
        instead: the value that can be.
        chooses: whether it decides which tokens come, rather than how fast or in what form.
    """

    wrong: Callable[[Any], bool]
    why: str
    instead: Any = None
    chooses: bool = False


def _given(value: Any) -> bool:
    return value is not None


def _more_than_one(value: Any) -> bool:
    return value is not None and value > 1


_SEVERAL = "lets sequences take each other's places, and in a compressed cache each holds entries of its own"
_GOES_BACK = "takes tokens back, which a compressed cache cannot"

#: Settings, and arguments of `generate` that decide as much.
REFUSED: dict[str, Refusal] = {
    "use_cache": Refusal(
        lambda v: v is not None and not v, "every step would read the whole text into the cache again", True
    ),
    "cache_implementation": Refusal(
        lambda v: v not in (None, "dynamic", "hybrid"), "a cache of that kind would take its place"
    ),
    "num_beams": Refusal(_more_than_one, f"beam search {_SEVERAL}", 1, chooses=True),
    "constraints": Refusal(_given, f"constrained beam search {_SEVERAL}", chooses=True),
    "force_words_ids": Refusal(_given, f"constrained beam search {_SEVERAL}", chooses=True),
    "penalty_alpha": Refusal(lambda v: v is not None and v > 0, f"contrastive search {_SEVERAL}", chooses=True),
    "dola_layers": Refusal(_given, "DoLa decodes in a loop of its own from the hub", chooses=True),
    "guidance_scale": Refusal(
        lambda v: v not in (None, 1), "guidance runs the model on a second text without the cache", chooses=True
    ),
    "token_healing": Refusal(bool, "token healing runs the model on a second text without the cache", chooses=True),
    "assistant_model": Refusal(_given, f"assisted decoding {_GOES_BACK}"),
    "assistant_early_exit": Refusal(_given, f"assisted decoding {_GOES_BACK}"),
    "prompt_lookup_num_tokens": Refusal(_given, f"prompt lookup {_GOES_BACK}"),
    "use_mtp": Refusal(bool, f"assisted decoding {_GOES_BACK}"),
    "is_assistant": Refusal(bool, "drafting for another model stops where that asks for it", False),
    "output_attentions": Refusal(bool, "attention weights are not kept where a cache is compressed", False),
}

#: How tokens are drawn; without them from the whole distribution.
_DRAWING = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
#: The form of what `generate` returns, and lengths that `max_new_tokens` stands for: not a checkpoint's to say.
_FORM = (
    "max_length",
    "num_return_sequences",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "cache_config",
    "max_cache_len",
    "compile_config",
)
#: Of a checkpoint's settings, what says nothing about how it writes.
_NAMES_ONLY = frozenset({"transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"})


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens with which the checkpoint's settings end a text, ascending."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    return sorted({int(i) for i in (ids if isinstance(ids, list | tuple) else [ids]) if i is not None})


def neutral(model: PreTrainedModel, new_tokens: int, **asked: Any) -> GenerationConfig:
    """Settings for measuring: greedy from the model's own logits, at most `new_tokens` tokens.

    Args:
        model: its end and pad tokens hold, and nothing else of its settings.
        asked: what the measurement itself wants otherwise.
    """
    own = model.generation_config
    ends, pad = end_tokens(model), getattr(own, "pad_token_id", None)
    settings = {
        "do_sample": False,
        "use_cache": True,
        "max_new_tokens": new_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": pad if pad is not None else (ends or [0])[0],
    }
    return GenerationConfig(**{**settings, **asked})


def drawn(temperature: float, top_p: float = 1.0) -> dict[str, Any]:
    """Sampling settings: from the whole distribution at a temperature, within `top_p`; greedy at 0."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def for_people(
    model: PreTrainedModel, new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Settings for writing: the checkpoint's own, decoded as the arguments say, one sequence with a compressed cache.

    Returns:
        The settings, and a remark for each of the checkpoint's that would choose other tokens and does not hold.
    """
    config = copy.deepcopy(model.generation_config)
    sampling = temperature > 0
    left: dict[str, Any] = {}
    for name, refusal in REFUSED.items():
        value = getattr(config, name, None)
        if refusal.wrong(value) and refusal.chooses and not (name == "penalty_alpha" and config.do_sample):
            left[name] = value
        if hasattr(config, name):
            setattr(config, name, refusal.instead)
    for name, whole in _DRAWING.items():
        value = getattr(config, name, None)
        if sampling and name not in ("temperature", "top_p") and value not in (None, whole):
            left[name] = value
        setattr(config, name, whole if sampling else None)
    for name in (*_FORM, *REPLACED):
        setattr(config, name, None)
    config.max_new_tokens = new_tokens
    for name, value in drawn(temperature, top_p).items():
        setattr(config, name, value)
    if config.pad_token_id is None:
        config.pad_token_id = (end_tokens(model) or [0])[0]
    remarks = [
        f"the checkpoint's {name}={_short(value)} was left out: "
        + (REFUSED[name].why if name in REFUSED else "`temperature` and `top_p` say how tokens are drawn")
        for name, value in left.items()
    ]
    return config, tuple(remarks)


def described(model: PreTrainedModel) -> dict[str, Any]:
    """What a manifest says about the settings with which a model is measured, JSON values."""
    return {"settings": "neutral", "end_tokens": end_tokens(model), "left_out": left_out(model)}


def left_out(model: PreTrainedModel) -> dict[str, Any]:
    """The checkpoint's settings that would decide what it writes and do not hold in measuring, JSON values."""
    brought = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    usual = {**usual_generation_settings(), **_DRAWING}
    return {
        name: _plain(value)
        for name, value in brought.items()
        if name not in _NAMES_ONLY and not name.startswith("_") and not _as_usual(value, usual.get(name))
    }


def _as_usual(value: Any, usual: Any) -> bool:
    return value is None or value == usual or (value is False and not usual)


def _plain(value: Any) -> Any:
    """As JSON has it; words for what it has not."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | float | bool) or value is None else printable(str(value))


def run_generate(
    model: PreTrainedModel, tokens: Tensor, config: GenerationConfig, mask: Tensor | None = None, **more: Any
) -> Tensor:
    """What the model writes after tokens with these settings and no others, those tokens in front.

    The class's own `generate` runs, not one that a checkpoint's code put in its place.

    Args:
        tokens: (n,), or (rows, n) padded on the left.
        mask: (rows, n), 0 where a token only pads.
        more: further arguments of `generate`: a cache, a streamer, stopping criteria.

    Returns:
        (n + new,) or (rows, n + new) token ids.
    """
    ids = tokens if tokens.dim() == 2 else tokens[None]
    with _alone(model, config):
        output: Tensor = type(model).generate(  # type: ignore[operator]
            model, ids, attention_mask=torch.ones_like(ids) if mask is None else mask, generation_config=config, **more
        )
    return output if tokens.dim() == 2 else output[0]


@contextmanager
def _alone(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """The model's settings replaced: `generate` fills in from those whatever is not set."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def in_force(model: PreTrainedModel, given: Mapping[str, Any], name: str) -> Any:
    """A setting's value in a call of `generate`, given its arguments by their names."""
    return _found(model, given, name)[0]


def _found(model: PreTrainedModel, given: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """The same, and where it comes from."""
    if name in given:
        return given[name], "as passed to generate"
    if getattr(given.get("generation_config"), name, None) is not None:
        return getattr(given["generation_config"], name), "as the generation_config that was passed has it"
    return getattr(model.generation_config, name, None), "as the model's generation_config has it"


def settled(model: PreTrainedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a call of `generate` with a compressed cache; arguments to add to the call.

    Args:
        given: the arguments of the call by their names.

    Raises:
        UsageError: a setting that cannot be with a compressed cache, wherever it comes from.
    """

    def found(name: str) -> tuple[Any, str]:
        return _found(model, given, name)

    for name, refusal in REFUSED.items():
        value, origin = found(name)
        if name == "penalty_alpha" and found("do_sample")[0]:
            continue  # `generate` samples then
        if refusal.wrong(value):
            raise UsageError(
                f"{name}={_short(value)} ({origin}) cannot be with a compressed cache: {refusal.why}; pass "
                f"{name}={refusal.instead}"
            )
    if (value := found("stop_strings"))[0] is not None and given.get("tokenizer") is None:
        raise UsageError(
            f"stop_strings={_short(value[0])} ({value[1]}) are found with the tokenizer; pass tokenizer=tokenizer too"
        )
    added = {name: value for name, value in REPLACED.items() if found(name)[0] != value}
    if found("cache_implementation")[0] is not None:
        added["cache_implementation"] = None  # dynamic, which a compressed cache is
    if "use_cache" in given and given["use_cache"] is None:
        added["use_cache"] = True  # `generate` takes None for no
    return added


def check_asked(asked: Mapping[str, Any]) -> None:
    """Refuse settings that a task of the harness asks for and a compressed cache cannot give.

    Raises:
        UsageError: an unknown setting, or one that cannot be.
    """
    known = (HONOURED - {*_FORM}) | WITHOUT_EFFECT | REPLACED.keys() | REFUSED.keys()
    for name, value in asked.items():
        if name not in known:
            raise UsageError(
                f"generation setting {name}={_short(value)} is not one that a task can ask for; leave it out of "
                "generation_kwargs"
            )
        if name in REFUSED and REFUSED[name].wrong(value):
            raise UsageError(f"{name}={_short(value)} cannot be with a compressed cache: {REFUSED[name].why}")


def _short(value: Any) -> str:
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:60] + "..."
