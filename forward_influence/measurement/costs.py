"""What a measurement will cost before it is begun: tokens, operations, memory and hours, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from forward_influence.instrument.compat import counted_twice
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.controls import POSITIVE_POSITIONS
from forward_influence.measurement.memory import Peak, peak_of_request
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import document_tokens, floor_runs, gradient_tokens, measured_count
from forward_influence.models.held_bytes import cache_bytes_of
from forward_influence.models.sizes import Sizes, forward_operations, head_operations
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: What configurations call the number of experts, and how many of them a token passes.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk", "moe_top_k")
#: Operations of the divergence per word of a position, about what its passes over memory cost in matrix operations.
_DIVERGENCE_OPERATIONS = 60
#: A backward pass costs about twice its forward pass, which runs with it.
_WITH_BACKWARD = 3.0


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        documents, conditions: how many, conditions per document and segment.
        tokens: that go through the model, all documents together.
        operations: floating-point operations (a multiplication and an addition are two).
        model_bytes: of the weights on each device.
        memory: the peak above the model.
        hours: on all workers together, None where no throughput is known.
    """

    documents: int
    conditions: int
    tokens: int
    operations: float
    model_bytes: int
    memory: Peak
    hours: float | None


def counted(sizes: Sizes, config: PreTrainedConfig) -> Sizes:
    """The sizes with the weights and the cache of the model that a configuration describes, made without memory.

    Where transformers cannot make it, or cannot run it without memory, they are left to the formula. No code that comes
    with a model is run.
    """
    from transformers import AutoModelForCausalLM

    kind = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[sizes.itemsize]
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
        decoder, head = model.get_decoder(), model.get_output_embeddings()
    except Exception:  # whatever a model's code raises on a configuration
        return sizes
    text = config.get_text_config(decoder=True)
    experts, chosen = _first(text, _EXPERTS), _first(text, _CHOSEN)
    share = chosen / experts if experts and chosen else 1.0
    aside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
    active = 0.0
    for name, weight in decoder.named_parameters():
        routed = "experts" in name.split(".") or (weight.dim() == 3 and weight.shape[0] == experts)
        if id(weight) not in aside:
            active += weight.numel() * (share if routed else 1.0)
    parameters = sum(weight.numel() for weight in model.parameters())
    if sizes.tied:
        parameters -= counted_twice(model)
    sizes = replace(sizes, parameters=parameters, active=round(active))
    try:
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")  # the others look at numbers, of which there are none
        with quiet():
            return sizes.holding(cache_bytes_of(decoder.eval(), config), config)
    except Exception:  # whatever a model's code raises without numbers
        return sizes


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first of several numbers that a configuration has."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def plan(
    sizes: Sizes,
    request: Request,
    documents: int,
    *,
    chunk: int = CHUNK,
    throughput: float | None = None,
    workers: int = 1,
) -> Plan:
    """Predict the cost of measuring so many documents.

    Args:
        sizes: of the model.
        throughput: operations per second that one worker's device reaches in the model's matrix products.
        workers: documents are spread over so many.
    """
    operations = document_operations(sizes, request)
    rounds = -(-documents // max(1, workers))
    layers = tuple(range(sizes.layers))
    return Plan(
        documents=documents,
        conditions=len(expand(request, "", 0, layers)),
        tokens=documents * document_tokens(request, layers, sizes.itemsize),
        operations=documents * operations,
        model_bytes=sizes.model_bytes,
        memory=peak_of_request(sizes, request, chunk),
        hours=None if throughput is None else rounds * operations / throughput / 3600,
    )


def document_operations(sizes: Sizes, request: Request) -> float:
    """Operations of one document: passes through the body, the head and the divergence where something is measured."""
    n, m = request.context, request.continuation
    measured = measured_count(request)
    context = forward_operations(sizes, 0, n) + (head_operations(sizes, n) if request.needs.head else 0.0)
    one = context + forward_operations(sizes, n, m) + compared_operations(sizes, m)
    if request.needs.reads_again:
        one += forward_operations(sizes, n, n)
    for condition in expand(request, "", 0, tuple(range(sizes.layers))):
        again = context if condition.reads_context else 0.0
        runs = condition.effect.runs(m, measured)
        one += again + forward_operations(sizes, n, runs) + compared_operations(sizes, measured)
    one += _WITH_BACKWARD * gradient_tokens(request) / max(1, m) * forward_operations(sizes, n, m)
    if request.continuation_from == "generate":
        one += forward_operations(sizes, n, m) + head_operations(sizes, m)
    positive = min(POSITIVE_POSITIONS, m)
    lengths = [*floor_runs(request, sizes.itemsize), *[(positive, positive)] * len(request.effects)]
    controls = sum(forward_operations(sizes, n, run) + compared_operations(sizes, seen) for run, seen in lengths)
    return request.segments * one + controls


def compared_operations(sizes: Sizes, length: int) -> float:
    """Operations of the head and the divergence on so many tokens."""
    return head_operations(sizes, length) + _DIVERGENCE_OPERATIONS * sizes.vocabulary * length
