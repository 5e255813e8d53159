"""What a generation request of the harness asks for, in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from forward_influence.errors import UsageError
from forward_influence.models.generation_settings import check_asked

#: Tokens of an answer where a task does not say, as the harness's own model has it.
ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """A request's settings.

    Attributes:
        until: texts at which an answer ends, the end token's among them.
        tokens: most tokens of an answer.
        total: of prompt and answer, where a task limits that instead; else None.
        settings: of `generate`; empty: greedy from the model's own logits.
    """

    until: tuple[str, ...]
    tokens: int
    total: int | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any], end: str) -> Asked:
        """As the harness reads generation_kwargs.

        Args:
            end: the end token, as text.

        Raises:
            UsageError: settings that contradict each other, are unknown, or cannot be with a compressed cache.
        """
        found: dict[str, Any] = dict(
            normalize_gen_kwargs({k: v for k, v in given.items() if v is not None}, ANSWER_TOKENS)
        )
        until = handle_stop_sequences([text for text in found.pop("until") if text], end)
        tokens, total = int(found.pop("max_gen_toks")), found.pop("max_length", None)
        if tokens < 1:
            raise UsageError(f"max_gen_toks={tokens}: an answer has at least one token")
        temperature = float(found.pop("temperature", 0.0))
        if found.pop("do_sample"):
            if temperature <= 0:
                raise UsageError(
                    "do_sample=true with temperature 0 draws nothing; give a temperature, or do_sample=false"
                )
            found = {"do_sample": True, "temperature": temperature, **found}
        check_asked(found)
        return cls(tuple(until), tokens, None if total is None else int(total), found)
