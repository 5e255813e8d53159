"""The transformers configuration of a GGUF file: every key read or refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from forward_influence.errors import UsageError
from forward_influence.models.gguf.architectures import ARCHITECTURES, Settings, one
from forward_influence.models.gguf.header import Header
from forward_influence.models.gguf.vocabulary import token_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Keys that say where a file comes from and how it was made, and suggestions for sampling, which nothing here follows.
_INFORMATION = re.compile(
    r"general\.(?!tensor_extra\.)|quantize\.imatrix\.|imatrix\.|mradermacher\.|split\.tensors\.count$|split\.no$"
)


def configuration(header: Header) -> PretrainedConfig:
    """The configuration that a GGUF file describes.

    Raises:
        UsageError: an architecture that is not read here, or a key (or its value) that has no counterpart.
    """
    from transformers import CONFIG_MAPPING

    arch = architecture(header)
    model_type, read = ARCHITECTURES[arch]
    with header.describing(f"{arch} model"):
        settings = _common(header, arch) | read(header, arch)
    left = [key for key in header.unread() if not key.startswith("tokenizer.") and not _INFORMATION.match(key)]
    if left:
        raise header.refusal(left[0], header.get(left[0]), "which is not understood here")
    if model_type not in CONFIG_MAPPING:
        raise UsageError(f"the installed transformers has no model of type {model_type}; install a newer one")
    with header.describing(f"{arch} model"):
        found: PretrainedConfig = CONFIG_MAPPING[model_type](**settings)
    return found


def architecture(header: Header) -> str:
    """The architecture of a GGUF file, one of `ARCHITECTURES`.

    Raises:
        UsageError: another one, a part of a file, or no model.
    """
    header.expect("general.type", "model")
    if (parts := header.get("split.count", 1)) > 1:
        raise UsageError(f"{header.path.name} is one of {parts} parts: join them (llama-gguf-split --merge)")
    found = header.require("general.architecture")
    if found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(
            f"{header.path.name} holds a model of architecture {found!r}; GGUF files of {known} can be read: take the "
            "model as safetensors"
        )
    return str(found)


def _common(header: Header, arch: str) -> Settings:
    """What every architecture has. Rotary positions, norms and head sizes are for each to read."""
    header.expect(f"{arch}.attention.causal", True)
    header.expect(f"{arch}.pooling_type", 0)
    header.expect(f"{arch}.nextn_predict_layers", 0)
    header.expect(f"{arch}.tensor_data_layout", "reference", "Meta AI original pth")
    header.expect(f"{arch}.expert_group_count", 0, 1)
    rows = header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else 0
    header.expect(f"{arch}.vocab_size", rows)
    ids = {name: token_id(header, name) for name in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    return {
        "max_position_embeddings": header.require(f"{arch}.context_length"),
        "hidden_size": header.require(f"{arch}.embedding_length"),
        "num_hidden_layers": header.require(f"{arch}.block_count"),
        "num_attention_heads": one(header, f"{arch}.attention.head_count"),
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "pad_token_id": ids["padding"],
    }
