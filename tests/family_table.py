"""What is proven of each model family, and the table of it: `python tests/family_table.py` writes docs/models.md."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import brute_force
import torch
import transformers
from families import names, tiny_family
from float64 import Float64
from released_layouts import family
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from forward_influence.errors import UsageError
from forward_influence.influence.measure import forward_influence
from forward_influence.instrument.architecture import Anatomy
from forward_influence.models.loading import Model, wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

TABLE = Path(__file__).parents[1] / "docs" / "models.md"
N, M = 40, 23
TOLERANCE = 1e-10
PROVEN, REFUSED, UNBUILT = "proven", "refused", "not tried"


@dataclass(frozen=True)
class Verdict:
    """How a family fares: `state` and what is to be said about it; `difference` is the largest |engine - reference|."""

    name: str
    state: str
    remark: str
    difference: float = 0.0


def verdict(name: str) -> Verdict:
    """Measure a tiny random model of a family in float64 against brute force, dropping and keeping."""
    try:
        raw = tiny_family(name)
    except Exception as error:
        return Verdict(name, UNBUILT, f"no tiny configuration: {_brief(error)}")
    try:
        with Float64():
            return _compared(name, wrap_model(raw))
    except UsageError as error:
        reason = str(error)
    try:  # in the dtype of every day, whose reason is what people see
        wrap_model(tiny_family(name, torch.float32))
    except UsageError as error:
        reason = str(error)
    return Verdict(name, REFUSED, reason.removeprefix(type(raw).__name__).lstrip(": "))


def _compared(name: str, model: Model) -> Verdict:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 97, (N + M,), generator=generator)
    trace = record(model, tokens[:N], span=N + M, chunk=13)  # one token is left over, and of 23 in elevens too
    ragged = torch.rand(trace.shape, generator=generator) < 0.4
    even = torch.rand(trace.shape, generator=generator).argsort(-1) < 29
    largest = 0.0
    for mode, mask in (("drop", ragged), ("keep", even)):
        removed = {layer: (mask[i] if mode == "drop" else ~mask[i]) for i, layer in enumerate(trace.layers)}
        kl, _, _ = brute_force.influence(model.model, tokens, N, removed)
        assert float(kl.max()) > 1e-6, f"{name}: the reference itself must see an effect"
        [found] = forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers), mode=mode, chunk=11)
        assert torch.isfinite(found.kl).all(), f"{name}: influences are numbers"
        largest = max(largest, float((found.kl - kl).abs().max()))
    return Verdict(name, PROVEN, _remark(model, trace.layers), largest)


def _remark(model: Model, layers: tuple[int, ...]) -> str:
    """What is particular about a family, in the layout that was measured."""
    anatomy, config = model.anatomy, model.model.config.get_text_config(decoder=True)
    parts = []
    default = type(model.model.config)()
    if getattr(default, "is_encoder_decoder", None):
        parts.append("its decoder alone (`is_encoder_decoder: false`)")
    if getattr(default, "is_decoder", None) is False:
        parts.append("as a decoder (`is_decoder: true`)")
    parts += _layers_in_words(anatomy, layers)
    if any("sinks" in key for key, _ in model.model.named_parameters()):
        parts.append("attention sinks")
    if getattr(config, "attn_logit_softcapping", None):
        parts.append("soft-capped attention")
    if any("expert" in key for key, _ in model.model.named_modules()):
        parts.append("mixture of experts")
    if anatomy.kv_heads < anatomy.query_heads and not anatomy.latent:
        parts.append("grouped heads")
    if type(anatomy.head).__name__ != "LinearHead":
        parts.append("head replayed through the model's own code")
    return ", ".join(parts)


def _layers_in_words(anatomy: Anatomy, layers: tuple[int, ...]) -> list[str]:
    """Which kinds of layers there are beside those that hold keys and values of every token."""
    kinds, parts = set(anatomy.kinds), []
    if any(anatomy.windows[i] for i in range(anatomy.layers) if i not in layers):
        parts.append("windows or chunks: only the full layers are ablated")
    if "LinearAttentionLayer" in kinds:
        parts.append("states: only the layers with entries are ablated")
    if any(kind.startswith("LinearAttentionAnd") for kind in kinds):
        parts.append("states beside entries in one layer")
    if anatomy.latent:
        parts.append("latent attention: one entry for all heads")
    if "DynamicIndexedLayer" in kinds:
        parts.append("indexers")
    if anatomy.steps.single:
        parts.append("a token at a time")
    return parts


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:140]}".replace("|", "/")


HEADER = """## Every family

Every causal language model family that transformers {version} names (`AutoModelForCausalLM`), as a tiny random model in
the layer layout of a released checkpoint (`tests/released_layouts.py`; a family with several layouts has several rows):
of {families} families {proven} are **proven** (in float64, the engine's KL equals a brute-force masked full pass within
1e-10, for random selections per layer and head, dropping and keeping); {refused} are **refused**, with the reason that
`forward-influence measure` gives; {unbuilt} were **not tried**, because no tiny model of them could be built.
`make models-table` writes this table anew, and `tests/instrument/test_families.py` fails where it is not current.
`make families` also measures direct effects, `--verify`, runs under compressors and compressed generation, against full
passes within 1e-10, for every layout with states, latents, indexers or shared caches
(`tests/instrument/test_family_ways.py`).

**Rotary embeddings that depend on a sequence's length** (LongRoPE of Phi-3 and later, dynamic NTK): every pass of a
run, in chunks or token by token, uses the factors of its whole span, context and continuation together. The tiny
models above are short and cannot show it; `tests/instrument/test_rotary_span.py` compares with one unchunked pass on
both sides of the length at which such models change, and at it. The command `generate` takes prompt and answer for
the span; `fi.compress` is told (`span=tokens`), and refuses such models where it is not.

| model type | class | result | remark |
| --- | --- | --- | --- |
"""


def table() -> str:
    """The page docs/models.md: what is written by hand in front stays, the table behind it is made anew."""
    verdicts = [verdict(name) for name in names()]
    for found in verdicts:
        if found.difference > TOLERANCE:
            raise SystemExit(f"{found.name} is WRONG by {found.difference:.2g}")
    of = {state: {family(v.name) for v in verdicts if v.state == state} for state in (PROVEN, REFUSED, UNBUILT)}
    of[REFUSED] -= of[PROVEN]
    count = {state: len(found) for state, found in of.items()}
    header = HEADER.format(
        version=transformers.__version__,
        families=sum(count.values()),
        proven=count[PROVEN],
        refused=count[REFUSED],
        unbuilt=count[UNBUILT],
    )
    rows = [f"| {v.name} | {CLASSES[family(v.name)]} | {v.state} | {v.remark.replace('|', '/')} |\n" for v in verdicts]
    by_hand, _, _ = TABLE.read_text("utf-8").partition(HEADER.splitlines()[0])
    return by_hand + header + "".join(rows)


def read_table() -> tuple[str, dict[str, tuple[str, str]]]:
    """(transformers version, name -> (state, remark)) of the page as it stands."""
    text = TABLE.read_text("utf-8")
    version = text.split("that transformers ")[1].split()[0]
    lines = text.split("| model type | class |")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines]
    return version, {name: (state, remark) for name, _, state, remark in rows}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    TABLE.write_text(table(), "utf-8")
    sys.stdout.write(f"{TABLE}\n")
