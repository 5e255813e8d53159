"""GGUF files: loaded dequantised, and converted to a folder that loads in a second.

The file loader of transformers does the work. Two things are mended here. A GGUF file names the way its vocabulary
splits text (`tokenizer.ggml.pre`), and transformers does not know all of the names: vocabularies learned with single
digits would be split like GPT-2's, which moves tokens where white space comes before a number. And a model loaded from
GGUF refuses `save_pretrained` until it has forgotten that it was quantised.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF_MAGIC = b"GGUF"

#: Names of `tokenizer.ggml.pre` that mean: each digit alone, then GPT-2's pattern (llama.cpp's pairs of expressions).
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def is_gguf(path: Path) -> bool:
    """Whether a file begins like GGUF."""
    with path.open("rb") as file:
        return file.read(4) == GGUF_MAGIC


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file carries, splitting text the way its vocabulary was learned."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if _fields(path)["tokenizer.ggml.pre"] in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def quantisation(path: Path) -> str:
    """The name of a GGUF file's number format, "Q4_1" say; "unknown" where the file does not tell."""
    from gguf import LlamaFileType

    try:
        return LlamaFileType(int(_fields(path)["general.file_type"])).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (TypeError, ValueError):
        return "unknown"


def _fields(path: Path) -> dict[str, Any]:
    status = path.stat()
    return _read_fields(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_fields(path: Path, changed_ns: int, size: int) -> dict[str, Any]:
    """The fields asked for here; reading a header takes 2 s with 49,000 tokens in it, so it is read once."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: reader.get_field(name) for name in ("general.file_type", "tokenizer.ggml.pre")}
    return {name: None if field is None else field.contents() for name, field in fields.items()}


def load_weights(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a GGUF file, dequantised, no longer marked as quantised, so that it can be saved and moved."""
    from transformers import AutoModelForCausalLM

    # The reader draws a bar on the standard error stream that no setting of transformers turns off.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, name):
            setattr(model, name, value)
    return model


def convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder` as float32 safetensors with its tokenizer, and read it back.

    Float32, because 4-bit values times their block scales fit neither float16 nor bfloat16: 211 of SmolLM2's 272
    tensors would change.

    Raises:
        ForwardInfluenceError: what reads back differs from what was written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model, tokenizer = load_weights(path, torch.float32), load_tokenizer(path)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        reread = AutoTokenizer.from_pretrained(folder)
    before, after = model.state_dict(), again.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise ForwardInfluenceError(f"{path.name}: the converted weights do not read back as they were written")
    probe = "In 1945,\n\n12,000 men  and\twomen: it's naïve… <b>end</b>\n"
    if tokenizer(probe).input_ids != reread(probe).input_ids or tokenizer.chat_template != reread.chat_template:
        raise ForwardInfluenceError(f"{path.name}: the converted tokenizer does not read back as it was written")


def require_gguf(path: Path) -> None:
    """Raise UsageError unless `path` is a readable GGUF file."""
    try:
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}")
        if not is_gguf(path):
            raise UsageError(f"{path.name} is no GGUF file (it does not begin with 'GGUF')")
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}") from error
