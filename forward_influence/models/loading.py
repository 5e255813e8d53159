"""Load a causal language model, however it is named, and say where it came from.

    resolve_spec("smollm2-135m")    what is meant, and its configuration; no weights are read
    load_model("smollm2-135m")      the model, ready to be measured

A spec is a name of data/models.toml, a local folder, a GGUF file, or an id on the Hugging Face hub. Weights are read
from safetensors or GGUF only: no pickle is ever opened.
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
from forward_influence.models.fingerprint import Fingerprint, configuration_of, fingerprint, mark
from forward_influence.models.gguf import files as gguf_models
from forward_influence.models.store import checked_folder, problem
from forward_influence.utils.display import Displayed
from forward_influence.utils.paths import is_there, typed_path
from forward_influence.utils.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from forward_influence.instrument.architecture import Anatomy

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
DTYPES = ("float32", "float64", "bfloat16", "float16")
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


@dataclass(frozen=True)
class Model(Displayed):
    """A causal language model in eval mode, without gradients, with its tokenizer and what is known about it.

    `digests` are of its weights and of everything that decides what it computes; see
    `forward_influence.models.fingerprint`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    spec: str
    provenance: dict[str, str]
    digests: Fingerprint
    device: torch.device
    dtype: torch.dtype
    _mark: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_mark", mark(self.model))

    def __repr__(self) -> str:
        a, dtype = self.anatomy, str(self.dtype).removeprefix("torch.")
        heads = f"{a.layers} layers, {a.query_heads} query and {a.kv_heads} kv heads"
        return f"Model({self.spec!r}: {type(self.model).__name__}, {heads}, {dtype} on {self.device})"

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what it computes, when it was loaded."""
        return self.digests.whole

    @property
    def configuration(self) -> dict[str, Any]:
        """Its configuration, without what decides no number."""
        return configuration_of(self.model)

    def require_unchanged(self) -> None:
        """Refuse to go on with a model that is not what its fingerprint and anatomy say any more.

        Raises:
            UsageError: an adapter was switched, weights or settings were changed, or it was moved, since it was loaded.
        """
        if mark(self.model) != self._mark:
            raise UsageError(
                f"{self.spec} was changed since it was loaded (an adapter, weights, settings or its device): results "
                "would not be told from the old ones; wrap it anew with wrap_model"
            )


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
        raise UsageError(f"{what}: {_first_line(error)}") from error


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


def load_model(
    spec: str | Resolved,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    device_map: str | dict[str, int | str] | None = None,
    max_memory: dict[int | str, int | str] | None = None,
) -> Model:
    """Load a causal language model.

    Args:
        spec: a name of the catalogue, a folder, a GGUF file, a hub id, or what `resolve_spec` returned.
        device: "auto" (cuda, else mps, else cpu), or a torch device.
        dtype: "auto" (float32), float32, float64, bfloat16 or float16.
        trust_remote_code: let transformers run code that comes with the model.
        revision: a branch, tag or commit of a hub model.
        device_map: "auto" spreads a model over several devices (accelerate), a dictionary says which part lies where;
            None keeps it on one.
        max_memory: with a device map, what each device may hold, as accelerate takes it.

    Raises:
        UsageError: see `resolve_spec`; also a device that is not there, or an architecture that cannot be measured.
        ForwardInfluenceError: weights are missing or do not read back.
    """
    from forward_influence.instrument.architecture import examine

    chosen_device, chosen_dtype = choose_device(device), choose_dtype(dtype)
    if not isinstance(spec, Resolved):
        spec = resolve_spec(spec, trust_remote_code=trust_remote_code, revision=revision)
    tokenizer = load_tokenizer(spec)
    spread: dict[str, Any] = {}
    if device_map is not None:
        if device != "auto" or spec.gguf is not None:
            raise UsageError("`device_map` spreads safetensors weights over devices: leave `device` and GGUF files out")
        spread = {"device_map": device_map, "max_memory": max_memory}
    model = _load_weights(spec, chosen_dtype, spread).eval().requires_grad_(False)
    digests = fingerprint(model)
    if spread:
        chosen_device = _first_device(model)
    else:
        try:
            model = model.to(chosen_device)
        except RuntimeError as error:
            raise ForwardInfluenceError(f"{spec.spec} does not fit on {chosen_device}: {_first_line(error)}") from error
    return Model(
        model=model,
        tokenizer=tokenizer,
        anatomy=examine(model),
        spec=spec.spec,
        provenance=dict(spec.provenance),
        digests=digests,
        device=chosen_device,
        dtype=chosen_dtype,
    )


def wrap_model(
    model: PreTrainedModel | torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, spec: str = ""
) -> Model:
    """A model that is in memory already, ready to be measured; it is put in eval mode and its gradients are off.

    Args:
        model: a transformers model; also one that `torch.compile` made, which is measured as it was before, or one that
            PEFT adapted, which is measured as adapted.
        tokenizer: needed where text is measured; token ids do without.
        spec: how results name it; default: its class, and its adapters.

    Raises:
        UsageError: it is no transformers model, or its architecture cannot be measured.
    """
    from forward_influence.instrument.architecture import examine
    from forward_influence.instrument.given import adapters_of, given_model

    adapters = adapters_of(model)
    model = given_model(model).eval().requires_grad_(False)
    parameter = next(model.parameters())
    anatomy = examine(model)  # it forgets sequences that the model has seen, which some rotary embeddings keep
    return Model(
        model=model,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        anatomy=anatomy,
        spec=spec or "+".join([type(model).__name__, *adapters]),
        provenance={"source": "memory", "note": " with adapter ".join(["given as an object", *adapters])},
        digests=fingerprint(model),
        device=parameter.device,
        dtype=parameter.dtype,
    )


def _first_device(model: PreTrainedModel) -> torch.device:
    """Where a model that is spread over devices takes its tokens.

    Raises:
        UsageError: its embedding or head is not held by a device, but on disk.
    """
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    if any(end.device.type == "meta" for end in ends):
        raise UsageError(
            "the model's embedding or head would lie on disk, where logits cannot be computed from; give more memory"
        )
    return ends[0].device


def _load_weights(resolved: Resolved, dtype: torch.dtype, spread: dict[str, Any] | None = None) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            if resolved.gguf is not None:
                return gguf_models.load_weights(resolved.gguf, dtype)
            # Typed as a model alone; with output_loading_info it is a pair.
            pair: Any = AutoModelForCausalLM.from_pretrained(
                resolved.location,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **resolved.loading,
                **(spread or {}),
            )
        except (KeyboardInterrupt, MemoryError, ForwardInfluenceError):
            raise
        except Exception as error:
            reason = _first_line(error)
            if isinstance(error, OSError) and "safetensors" in str(error):
                reason = f"it has no safetensors weights, and pickled ones are not opened ({reason})"
            raise ForwardInfluenceError(f"the weights of {resolved.spec} cannot be loaded: {reason}") from error
    model: PreTrainedModel = pair[0]
    missing = sorted(pair[1]["missing_keys"])
    if missing:
        raise UsageError(
            f"{resolved.spec} lacks {len(missing)} of the weights of a {type(model).__name__} ({missing[0]}): "
            "they would be random; is it a causal language model?"
        )
    return model


@dataclass(frozen=True)
class AtHand:
    """A model that can be named: `state` is "ready", "not pulled", or what is wrong with it. Sizes in bytes."""

    name: str
    title: str
    source: str
    licence: str
    state: str
    size: int
    download: int = 0
    terms: str = ""
    default: bool = False


def describe_models() -> list[AtHand]:
    """The named models, and the models with safetensors weights in the local hub cache. Nothing is hashed or loaded."""
    named = [
        AtHand(
            name=model.name,
            title=model.title,
            source=model.source,
            licence=model.licence,
            state=problem(model, full=False) or "ready",
            size=model.size,
            download=model.download,
            terms=model.terms,
            default=model.default,
        )
        for model in catalogue().values()
    ]
    return named + [AtHand(name, name, "hub cache", "", "ready", size) for name, size in hub.cached_models()]


def choose_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps"; UsageError if it is not there."""
    import torch

    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        hint = did_you_mean(device, ["auto", "cpu", "cuda", "mps"])
        raise UsageError(f"{device!r} is no device{hint}; use auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False) or (
        chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"this machine has no {device}; use `device` auto or cpu")
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype for "auto" (float32) or one of `DTYPES`; UsageError for others."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return torch.float32
    if name not in DTYPES:
        raise UsageError(f"{name!r} is no dtype for a model{did_you_mean(name, DTYPES)}; use auto, {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
