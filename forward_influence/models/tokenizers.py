"""The tokenizer that a model came with, for rules that ask the model something in words."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_tokenizers: WeakKeyDictionary[PreTrainedModel, PreTrainedTokenizerBase] = WeakKeyDictionary()


def remember_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Note what a model came with; nothing is noted where it came without."""
    if tokenizer is not None:
        _tokenizers[model] = tokenizer


def remembered_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model was loaded or wrapped with, or the one that lies where its weights came from."""
    if model not in _tokenizers and (place := getattr(model.config, "name_or_path", "")):
        from transformers import AutoTokenizer

        from forward_influence.utils.quiet import quiet

        try:
            with quiet():
                remember_tokenizer(model, AutoTokenizer.from_pretrained(place, local_files_only=True))
        except Exception:  # transformers raises whatever its readers raise
            return None
    return _tokenizers.get(model)
