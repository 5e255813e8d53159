"""GGUF files: read dequantised, and converted to a folder that loads in a second.

Everything that the header says and that decides results is carried over into the configuration (`gguf_config`,
`gguf_rope`) and the tokenizer (`gguf_vocabulary`), or the file is refused. transformers has a loader of its own, which
drops rotary scaling and more without a word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.instrument.compat import causal_class
from forward_influence.models.gguf.config import configuration
from forward_influence.models.gguf.header import MAGIC, read_header
from forward_influence.models.gguf.vocabulary import tokenizer_of
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def is_gguf(path: Path) -> bool:
    """Whether a file begins like GGUF."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def load_config(path: Path) -> PretrainedConfig:
    """The configuration of the model in a GGUF file.

    Raises:
        UsageError: the file says something about the model that cannot be carried over.
    """
    return configuration(read_header(path))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file carries.

    Raises:
        UsageError: the file says something about it that cannot be carried over.
    """
    return tokenizer_of(read_header(path))


def quantisation(path: Path) -> str:
    """The name of a GGUF file's number format, "Q4_1" say; "unknown" where the file does not tell."""
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(int(read_header(path).get("general.file_type"))).name
    except (TypeError, ValueError):
        return "unknown"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def load_weights(path: Path, dtype: torch.dtype, read: Callable[[int], None] | None = None) -> PreTrainedModel:
    """The model of a GGUF file, dequantised.

    Args:
        read: called with the size of each tensor, in bytes of float32, once it is read.

    Raises:
        UsageError: a tensor of the file has no place in the model, or a weight of the model is not in the file.
    """
    from forward_influence.models.gguf.weights import checkpoint

    header = read_header(path)
    config = configuration(header)
    made: Any = causal_class(config)
    model, told = made.from_pretrained(
        None,
        config=config,
        state_dict=checkpoint(header, config, dtype, read),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are told, and refused here
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[kind]:
            first = sorted(str(name) for name in told[kind])[0]
            raise UsageError(
                f"{path.name} does not hold the weights of a {type(model).__name__}: {kind.replace('_', ' ')}, "
                f"{first}; take the model as safetensors"
            )
    return model


def convert(path: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write the model of a GGUF file to `folder` as float32 safetensors with its tokenizer, and read it back.

    Float32, because 4-bit values times their block scales fit neither float16 nor bfloat16: 211 of SmolLM2's 272
    tensors would change.

    Args:
        progress: told how far each step is, in bytes of float32.

    Raises:
        UsageError: the file says something that cannot be carried over.
        ForwardInfluenceError: what reads back differs from what was written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress = progress or Silent()
    size = 4 * sum(math.prod(tensor.shape) for tensor in read_header(path).tensors.values())
    with quiet():
        with _step(progress, size, "dequantising the weights") as told:
            model, tokenizer = load_weights(path, torch.float32, told), load_tokenizer(path)
        with _step(progress, 0, "writing the model"):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            before, described = _digests(model), model.config.to_diff_dict()
            del model  # so that memory holds one of the two
        with _step(progress, 0, "reading it back to compare"):
            again = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
            reread = AutoTokenizer.from_pretrained(folder)
            after = _digests(again)
    if before != after:
        raise ForwardInfluenceError(f"{path.name}: the converted weights do not read back as they were written")
    if described != again.config.to_diff_dict():
        raise ForwardInfluenceError(f"{path.name}: the converted configuration does not read back as it was written")
    probe = "In 1945,\n\n12,000 men  and\twomen: it's naïve… <b>end</b>\n"
    if tokenizer(probe).input_ids != reread(probe).input_ids or tokenizer.chat_template != reread.chat_template:
        raise ForwardInfluenceError(f"{path.name}: the converted tokenizer does not read back as it was written")


@contextmanager
def _step(progress: Progress, size: int, what: str) -> Iterator[Callable[[int], None]]:
    """A step of so many bytes (0: not known); takes how many more are done."""
    progress.begin(size, what)
    yield lambda done: progress.advance(done, what)
    progress.end()


def _digests(model: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of every weight's shape, type and bytes, by name."""
    return {
        name: hashlib.sha256(f"{weight.shape} {weight.dtype}".encode() + weight.contiguous().numpy().data).hexdigest()
        for name, weight in model.state_dict().items()
    }


def require_gguf(path: Path) -> None:
    """Raise UsageError unless `path` is a readable GGUF file."""
    try:
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}")
        if not is_gguf(path):
            raise UsageError(f"{path.name} is no GGUF file (it does not begin with 'GGUF')")
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}") from error
