"""One place for transformers' versions: no other module touches what transformers hides, or knows a version of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from forward_influence.errors import UsageError
from forward_influence.instrument import compat
from forward_influence.instrument.architecture import refuse_unfit_caches

ROOT = Path(__file__).parents[2]
FOLDERS = ("forward_influence", "analysis", "cli", "data")
HOME = ROOT / "forward_influence/instrument/compat.py"

#: Underscored names that modules reach for in objects which are not their own, and whose they are.
NOT_OF_TRANSFORMERS = {
    "_version": "torch's count of a tensor's changes",
    "_orig_mod": "torch.compile's",
    "_hf_hook": "accelerate's",
}
_VERSION = re.compile(r"(transformers|kvpress)[^\n\"]{0,60}\b[45]\.\d+|\b[45]\.\d+(\.\d+)?[^\n\"]{0,60}transformers")
_PRIVATE = re.compile(r"\b(_attn_implementation|_experts_implementation|_commit_hash|_name_or_path|_model_mapping)\b")
_SHIMS = re.compile(
    r"ALL_ATTENTION_FUNCTIONS|transformers\.__version__|version\(\"transformers\"\)|get_max_cache_shape"
)


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path != HOME]


def private_names(text: str) -> set[str]:
    """Underscored attributes that a source reads of other objects than itself and does not define."""
    tree = ast.parse(text)
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            found |= {str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant)}
    return {name for name in found if re.match(r"_[a-z]", name)}


def defined() -> set[str]:
    """Underscored names that the package itself defines: of functions, methods, fields and attributes."""
    found = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                flat = [t for target in targets for t in ast.walk(target)]
                found |= {t.id for t in flat if isinstance(t, ast.Name)}
                found |= {t.attr for t in flat if isinstance(t, ast.Attribute) and isinstance(t.ctx, ast.Store)}
    return found


def test_no_other_module_reaches_for_a_private_name() -> None:
    own = defined() | set(NOT_OF_TRANSFORMERS)
    reached = {path.name: names for path in sources() if (names := private_names(path.read_text("utf-8")) - own)}
    assert reached == {}


def test_no_other_module_knows_a_version() -> None:
    for path in sources():
        text = path.read_text("utf-8")
        for pattern in (_VERSION, _PRIVATE, _SHIMS):
            assert not (found := pattern.search(text)), f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_the_search_finds_what_it_looks_for() -> None:
    """In the shims' own home, and in lines like those that stood elsewhere."""
    home = HOME.read_text("utf-8")
    assert _PRIVATE.search(home) and _SHIMS.search(home)
    assert private_names(home) >= {"_attn_implementation", "_model_mapping", "_get_default_generation_params"}
    assert private_names('getattr(GenerationConfig, "_get_default_generation_params", dict)')
    assert _VERSION.search("needs transformers below 5.3")
    assert _VERSION.search("# gemma4 in transformers 5.12.1")


def test_every_shim_says_when_it_can_go() -> None:
    """Or that no version yet has a public way; the supported range itself is pyproject's."""
    tree = ast.parse(HOME.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            said = ast.get_docstring(node) or ""
            says = re.search(r"[Cc]an go with \d|in any version of 5|in every version of 5", said)
            assert says or node.name == "is_bookkeeping", node.name


def test_the_cache_goes_under_the_name_that_a_forward_has() -> None:
    class Old(nn.Module):
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class New(nn.Module):
        def forward(self, input_ids: object, cache: object = None) -> None: ...

    cache = DynamicCache()
    assert compat.named_cache(Old(), cache) == {"past_key_values": cache}
    assert compat.named_cache(New(), cache) == {"cache": cache}
    assert compat.given_cache({"cache": cache}) is compat.given_cache({"past_key_values": cache}) is cache
    assert compat.given_cache({"cache": None}) is None


def test_queries_are_counted_from_a_length_or_from_positions() -> None:
    assert compat.query_count(7) == compat.query_count(torch.arange(3, 10)) == 7


def test_implementations_are_given_back_as_they_are_taken() -> None:
    model = tiny_model("llama")
    before = compat.attention_implementations(model)
    model.set_attn_implementation("eager")
    assert compat.attention_implementations(model) == "eager"
    model.set_attn_implementation(before)
    assert compat.attention_implementations(model) == before


def test_the_class_of_a_configuration_is_the_one_that_auto_classes_make() -> None:
    config = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, intermediate_size=8)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert compat.causal_class(config) is type(made)
    assert compat.causal_class(object()) is None  # type: ignore[arg-type]


def test_a_head_that_will_be_tied_is_counted_once() -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, intermediate_size=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        tied = sum(p.numel() for p in model.parameters()) - compat.counted_twice(model)
        model.set_output_embeddings(nn.Linear(16, 40, bias=False))  # as 5.0 leaves it until weights are loaded
    assert sum(p.numel() for p in model.parameters()) - compat.counted_twice(model) == tied


def test_a_cache_with_fewer_layers_than_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions before 5.23 have it."""
    config = LlamaConfig(num_hidden_layers=3)
    refuse_unfit_caches("Tiny", config)
    cache = type("Short", (), {"layers": [DynamicLayer(), DynamicLayer()]})()
    monkeypatch.setattr("forward_influence.instrument.architecture.DynamicCache", lambda **named: cache)
    assert compat.lacks_layers(config, cache.layers)
    with pytest.raises(UsageError, match="share another layer's cache"):
        refuse_unfit_caches("Tiny", config)


def test_the_usual_settings_are_what_generate_fills_in() -> None:
    usual = compat.usual_generation_settings()
    assert usual["do_sample"] is False and usual["num_beams"] == 1
    assert all(hasattr(GenerationConfig(), name) for name in usual)
