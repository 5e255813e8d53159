"""Everything that knows a version of transformers, or a name that transformers keeps to itself; no other module does.

Supported is what pyproject.toml says: transformers 5, from 5.0 on. Every shim says what it bridges and with which
version it can go: once no supported one is older. What transformers documents is used where it is needed; here is what
it renamed, left out or hides.

Nothing is imported here before it is called: the command line reads names from this module without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache

# --- Renamed -------------------------------------------------------------------------------------------------------


@lru_cache
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def named_cache(module: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """The argument that gives a model or its decoder a cache, `cache` or `past_key_values`; `generate` takes it too.

    5.24 renamed it. Can go with 5.24, once models that bring their own code have followed.
    """
    return {_cache_name(type(module).forward): cache}


def given_cache(named: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, under either name; None where there is none.

    Models take `past_key_values` until 5.40, `generate` until 6. Can go with 6.
    """
    found = named.get("cache")
    return named.get("past_key_values") if found is None else found


def query_count(query_length: int | Tensor) -> int:
    """How many queries `CacheLayerMixin.get_mask_sizes` is asked about.

    Before 5.4 it is given their positions (q,). Can go with 5.4.
    """
    return query_length if isinstance(query_length, int) else int(query_length.shape[0])


class Unbounded:
    """For cache layers that hold as many tokens as there are, under both names of the question.

    5.13 renamed `get_max_cache_shape` to `get_max_length`. The old one can go with 5.13.
    """

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit."""
        return -1


# --- Left out ------------------------------------------------------------------------------------------------------


def lacks_layers(config: object, layers: Sequence[object]) -> bool:
    """Whether a decoder's stock cache has no layer where the decoder shares another's cache or holds none.

    From 5.23 on a `DummyLayer` is there instead. Can go with 5.23.
    """
    count = getattr(config, "num_hidden_layers", None)
    return isinstance(count, int) and 0 < len(layers) < count


def cache_layer_class(name: str) -> type:
    """A kind of cache layer of transformers, by its name; one that nothing is an instance of where there is none.

    Indexed layers came with 5.12, layers that carry states beside a sliding window with 5.20, and `DummyLayer` with
    5.23. Can go with 5.23.
    """
    from transformers import cache_utils

    found: type = getattr(cache_utils, name, None) or type(name, (), {})
    return found


#: From which version on that is so, for messages.
STATES_FROM = "5.23"


def carries_states() -> bool:
    """Whether caches are known whose layers carry states, hold index keys, or read another layer's entries.

    From 5.23 on a layer numbers its states, and a decoder's cache has a layer for each of its own; before, such models
    are refused. Can go with 5.23.
    """
    from transformers import cache_utils

    return hasattr(cache_utils, "DummyLayer")


#: What a pass raises whose model has more attending layers than its cache has layers (Gemma 4 in 5.12).
#: Can go with 5.23, whose caches have a layer for each.
CACHE_TOO_SHORT = IndexError


def counted_twice(model: PreTrainedModel) -> int:
    """Parameters of a head that will be tied to the embedding and is not yet, in a model made from its configuration.

    5.0 ties weights only once they are loaded. Can go with 5.1.
    """
    head = model.get_output_embeddings()
    return 0 if head is None or head.weight is model.get_input_embeddings().weight else int(head.weight.numel())


#: Before which version kvpress finds what it needs, for messages. Can go when a release of kvpress says otherwise.
KVPRESS_BELOW = "5.3"

# --- Hidden --------------------------------------------------------------------------------------------------------


def attention_implementations(model: PreTrainedModel) -> str | dict[str, Any]:
    """The attention implementations in force, in the form that `set_attn_implementation` takes back.

    No public name gives them back in any version of 5.
    """
    config = model.config
    own = config._attn_implementation or "eager"
    subs = {
        key: sub._attn_implementation or "eager"
        for key in config.sub_configs
        if (sub := getattr(config, key, None)) is not None
    }
    return {"": own, **subs} if subs else own


def causal_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of the causal language model of a configuration; None where transformers has none.

    Auto classes make models and show no class in any version of 5.
    """
    from transformers import AutoModelForCausalLM

    kinds = AutoModelForCausalLM._model_mapping
    if type(config) not in kinds:
        return None
    kind: type[PreTrainedModel] = kinds[type(config)]
    return kind


def usual_generation_settings() -> dict[str, Any]:
    """What `generate` takes for settings that nobody gave, by name.

    In a new `GenerationConfig` they are None in every version of 5.
    """
    from transformers import GenerationConfig

    found: dict[str, Any] = GenerationConfig._get_default_generation_params()
    return found


#: Entries of a configuration that say where it came from, how it is run or what is put out, not what is computed. Of
#: configurations that 4 saved, too: none can go while such checkpoints are read.
SAYS_NOT_WHAT = frozenset(
    {
        "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache",
        "architectures", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "id2label",
        "label2id", "problem_type", "auto_map", "chunk_size_feed_forward", "_attn_implementation",
        "attn_implementation",
        "_attn_implementation_autoset", "_experts_implementation", "experts_implementation",
    }
)  # fmt: skip


def is_bookkeeping(attribute: str, of_model: bool) -> bool:
    """Whether a module's attribute is transformers' own bookkeeping, which says nothing of what is computed.

    Args:
        of_model: it is one of a `PreTrainedModel`; those keep more of it than modules do.
    """
    return attribute.startswith("_is_hf") or (of_model and (attribute.startswith("_") or attribute in SAYS_NOT_WHAT))
