"""Load a causal language model, however it is named, and say where it came from.

    load_model("smollm2-135m")      the model, ready to be measured
    wrap_model(model, tokenizer)    the same of one that is in memory already

Weights are read from safetensors or GGUF only: no pickle is ever opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.models.devices import choose_device, choose_dtype
from forward_influence.models.fingerprint import Fingerprint, configuration_of, fingerprint, mark
from forward_influence.models.gguf import files as gguf_models
from forward_influence.models.resolving import Resolved, first_line, load_tokenizer, resolve_spec
from forward_influence.models.tokenizers import remember_tokenizer
from forward_influence.utils.display import Displayed
from forward_influence.utils.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forward_influence.instrument.architecture import Anatomy


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
        remember_tokenizer(self.model, self.tokenizer)

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
            raise ForwardInfluenceError(f"{spec.spec} does not fit on {chosen_device}: {first_line(error)}") from error
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
            reason = first_line(error)
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
