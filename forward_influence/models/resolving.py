"""What a model's name means: where it lies and its configuration, before any weights are read.

A name is one of data/models.toml, a local folder, a GGUF file, or an id on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean
from forward_influence.instrument.compat import causal_class
from forward_influence.instrument.positions import positions_of
from forward_influence.models import hub
from forward_influence.models.catalog import catalogue, default_model
from forward_influence.models.gguf import files as gguf_models
from forward_influence.models.store import checked_folder
from forward_influence.utils.paths import is_there, typed_path
from forward_influence.utils.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
#: Architectures that attend causally although their configuration says `is_decoder=False`.
_CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese"})


@dataclass(frozen=True)
class Resolved:
    """What a spec means: where the model lies and its configuration. No weights have been read.

    `location` and `loading` are what transformers is given: a folder or a hub id, and how to look there.
    """

    spec: str
    kind: Literal["named", "folder", "gguf", "hub"]
    location: str
    config: PretrainedConfig
    provenance: dict[str, str]
    gguf: Path | None = None
    loading: dict[str, Any] = field(default_factory=lambda: {"local_files_only": True})

    @property
    def positions(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None where its configuration sets no limit."""
        return positions_of(self.config)


def resolve_spec(spec: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Resolved:
    """Find out what `spec` means and read its configuration, without its weights.

    Raises:
        UsageError: nothing is called so, it was not pulled, it cannot be reached, or it is no causal language model.
        ForwardInfluenceError: the cached model is damaged.
    """
    if not isinstance(spec, str) or not spec or not spec.isprintable():
        raise UsageError(f"{spec!r} names no model; the default is {default_model()}")
    with quiet():
        resolved = _resolve(spec, trust_remote_code, revision)
    if revision is not None and resolved.kind != "hub":
        raise UsageError(f"{spec} is not on the hub: a revision says nothing about it")
    _require_causal(resolved)
    return resolved


def _resolve(spec: str, trust_remote_code: bool, revision: str | None) -> Resolved:
    if spec in catalogue():
        named = catalogue()[spec]
        folder = checked_folder(named)
        provenance = {"source": named.source, "note": named.note, "gguf_sha256": named.gguf_sha256}
        return Resolved(spec, "named", str(folder), _config(str(folder), spec), provenance)
    path = typed_path(spec)
    if path.suffix.lower() == ".gguf":
        gguf_models.require_gguf(path)
        path = path.absolute()
        with _refusing(f"the configuration of {spec} cannot be used"):
            config = gguf_models.load_config(path)
        provenance = {"source": path.name, "note": f"{gguf_models.quantisation(path)} GGUF, dequantised"}
        return Resolved(spec, "gguf", str(path.parent), config, provenance, gguf=path)
    if is_there(path) and path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise UsageError(
                    f"the folder {spec!r} holds a PEFT adapter, not a model; save the model with it merged, or give "
                    "the loaded PeftModel to wrap_model"
                )
            raise UsageError(f"the folder {spec!r} holds no model: it has no config.json")
        loading: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        provenance = {"source": f"folder {path.absolute().name}", "note": "as stored"}
        return Resolved(spec, "folder", str(path), _config(str(path), spec, **loading), provenance, loading=loading)
    if not hub.is_repository_id(spec):
        known = ", ".join(catalogue())
        raise UsageError(
            f"there is no folder {spec!r}, and it is no hub id{did_you_mean(spec, list(catalogue()))}; "
            f"a model is a name ({known}), a folder, a .gguf file or a hub id like org/name"
        )
    found = hub.find(spec, revision)
    loading = {"revision": found.commit, "local_files_only": not found.online, "trust_remote_code": trust_remote_code}
    provenance = {"source": f"hub {spec}@{found.commit}", "note": "as stored"}
    return Resolved(spec, "hub", spec, _config(spec, spec, **loading), provenance, loading=loading)


def _config(location: str, spec: str, **arguments: Any) -> PretrainedConfig:
    from transformers import AutoConfig

    with _refusing(f"the configuration of {spec} cannot be used"):
        found: PretrainedConfig = AutoConfig.from_pretrained(location, **arguments)
        return found


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever readers raise into a UsageError; what this package says stands as it is said."""
    try:
        yield
    except ForwardInfluenceError:
        raise
    except Exception as error:
        # transformers raises whatever its readers raise: OSError, ValueError, KeyError, validation errors.
        raise UsageError(f"{what}: {first_line(error)}") from error


def _require_causal(resolved: Resolved) -> None:
    config, spec = resolved.config, resolved.spec
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{spec} is an encoder-decoder model ({config.model_type}): only decoder-only ones are measured"
        )
    remote = resolved.loading.get("trust_remote_code") and "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if not remote and causal_class(config) is None:
        raise UsageError(f"{spec} is no causal language model: transformers has none of type {config.model_type!r}")
    if getattr(config, "is_decoder", None) is False and config.model_type not in _CAUSAL_ANYWAY:
        raise UsageError(
            f"{spec} is an encoder ({config.model_type}): its tokens see the future, which is measured here"
        )


def load_tokenizer(resolved: Resolved) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved spec; enough to count and cut documents before any weights are read."""
    from transformers import AutoTokenizer

    if resolved.kind == "folder" and not any((Path(resolved.location) / name).exists() for name in _TOKENIZER_FILES):
        raise UsageError(f"the folder {resolved.spec!r} holds no tokenizer; save the model's tokenizer beside it")
    with _refusing(f"the tokenizer of {resolved.spec} cannot be used"), quiet():
        if resolved.gguf is not None:
            return gguf_models.load_tokenizer(resolved.gguf)
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolved.location, **resolved.loading)
        return found


def first_line(error: BaseException) -> str:
    """The first line of what a library raised that says anything, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
