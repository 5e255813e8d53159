"""Presses as rules, and InfoKV as a press inside kvpress's own pipeline."""

from __future__ import annotations

import json

import kvpress
import pytest
import tiny_data
import torch
from tiny import tiny_model
from transformers import DynamicCache

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.measure import forward_influence
from forward_influence.integrations.kvpress_press import InfoKVPress
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.models.loading import load_model, wrap_model
from forward_influence.selectors import explained, final_scores, parse_selector, select
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.utils.progress import Silent

N = 120


def setup(*specs: str, first: int = 4, last: int = N - 16):
    model = wrap_model(tiny_model("llama", torch.float32, seed=3))
    tokens = torch.randint(3, 97, (N + 20,), generator=torch.Generator().manual_seed(2))
    needs = Needs.merge(need for spec in specs for need in parse_selector(spec).needs)
    return model, tokens, record(model, tokens[:N], needs, span=N + 20, first=first, last=last, chunk=50)


def test_a_press_selects_what_our_rule_selects():
    theirs, ours = "kvpress:SnapKVPress:window_size=16,kernel_size=7", "attention:window=16,kernel=7"
    _, _, trace = setup(theirs, ours)
    assert torch.equal(select(parse_selector(theirs), trace, 30).mask, select(parse_selector(ours), trace, 30).mask)
    assert parse_selector(theirs).observation_window == 16
    assert parse_selector(theirs).spec == theirs
    assert parse_selector(parse_selector(theirs).spec) == parse_selector(theirs)


@pytest.mark.parametrize("name", ["ObservedAttentionPress", "LagKVPress", "KnormPress", "LeverageScorePress"])
def test_other_presses_score_too(name):
    spec = f"kvpress:{name}:per=layer"
    _, _, trace = setup(spec)
    assert select(parse_selector(spec), trace, 20).mask.sum(-1).unique().tolist() == [20]


def test_the_model_is_left_as_it_was():
    spec = "kvpress:ExpectedAttentionPress:n_future_positions=64"
    model, tokens, trace = setup(spec)
    before = {name for name, _ in model.model.named_modules(remove_duplicate=False)}
    implementation = model.model.config._attn_implementation
    selection = select(parse_selector(spec), trace, 20)
    select(parse_selector("kvpress:ObservedAttentionPress"), trace, 20)
    assert {name for name, _ in model.model.named_modules(remove_duplicate=False)} == before
    assert not any(m._forward_hooks for m in model.model.modules())
    assert model.model.config._attn_implementation == implementation
    [found] = forward_influence(model, trace, tokens[N:], selection)
    assert float(found.kl.max()) > 1e-4


def test_a_press_is_explained_by_its_fields():
    found = explained(type(parse_selector("kvpress:ExpectedAttentionPress")))
    names = [p.name for p in found.parameters]
    assert {"eager", "compression_ratio", "n_future_positions", "n_sink", "use_vnorm", "per", "heads"} <= set(names)
    assert found.source == "kvpress"


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("kvpress:SnapKVPres", "kvpress has no press 'SnapKVPres' \\(did you mean 'SnapKVPress'\\?\\)"),
        ("kvpress:DuoAttentionPress", "scores no tokens"),
        ("kvpress:SnapKVPress:window=3", "no parameter 'window' \\(did you mean 'window_size'\\?\\)"),
        ("kvpress:SnapKVPress:window_size=x", "not a whole number"),
        ("kvpress:SnapKVPress:compression_ratio=2", "Compression ratio must be between 0 and 1"),
        ("kvpress", "names no rule; write kvpress:RuleName"),
    ],
)
def test_bad_specifications(spec, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_selector(spec)


def test_what_a_press_raises_is_reported_with_its_name():
    _, _, trace = setup("kvpress:SnapKVPress:window_size=300")
    with pytest.raises(ForwardInfluenceError, match="rule 'kvpress:SnapKVPress' failed: AssertionError: Query length"):
        final_scores(parse_selector("kvpress:SnapKVPress:window_size=300"), trace)


def test_a_press_is_measured_from_end_to_end(tmp_path):
    """Rows of a run: the press's own, those of our rule that selects the same, and its matched control."""
    model = tiny_data.model()
    theirs, nested = "kvpress:SnapKVPress:window_size=8", "kvpress:SnapKVPress(window_size=8)"
    request = Request(
        selectors=(theirs, "attention:window=8", f"position-matched:of={nested}"),
        context=60, continuation=40, protect_last=8, budgets=("0.2",), draws=2, verify=True,
    )  # fmt: skip
    run = measure(model, tiny_data.documents(2, 100), request, tmp_path / "run")
    rows = [row for row in run.rows() if row["kind"] == "condition"]
    assert len(rows) == 2 * (1 + 1 + 2)
    for document in {row["document"] for row in rows}:
        mine = {row["selector"]: row for row in rows if row["document"] == document}
        assert mine[theirs]["kl"] == pytest.approx(mine["attention:window=8"]["kl"], abs=1e-6)
        assert list(mine[theirs]["selected"]) == [12] * 6
        control = next(row for name, row in mine.items() if name.startswith("position-matched"))
        assert json.loads(control["parameters"])["of_spec"] == theirs


def test_presses_whose_scores_tie_are_named(tmp_path):
    """StreamingLLMPress scores ones and zeros: which of the ones are removed is left to their order."""
    spec = "kvpress:StreamingLLMPress"
    request = Request(selectors=(spec,), context=60, continuation=40, protect_last=8, budgets=("0.2",))
    said = []

    class Watching(Silent):
        def message(self, text):
            said.append(text)

    measure_document(tiny_data.model(), tiny_data.documents(1, 100)[0], request, progress=Watching())
    assert said == [f"rule {spec!r} left 100% of what it selected to ties, which go to the earlier token"]


@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("alignment", ["own", "next"])
def test_the_infokv_press_scores_as_our_rule(alpha, alignment):
    spec = f"infokv:alpha={alpha},window=16,top_k=32,alignment={alignment}"
    model, tokens, trace = setup(spec, first=0)
    press = InfoKVPress(alpha=alpha, window_size=16, top_k=32, alignment=alignment)
    with torch.no_grad(), press(model.model):
        model.model.model(input_ids=tokens[None, :N], past_key_values=DynamicCache())
    found = torch.stack([press.scores[i] for i in range(3)])[..., : N - 16]
    wanted = final_scores(parse_selector(spec), trace)[..., : N - 16]
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-5)


def test_the_infokv_press_compresses_in_order_and_generation_goes_on():
    model, tokens, trace = setup("infokv:window=16", first=0)
    press = InfoKVPress(compression_ratio=0.5, window_size=16)
    cache = DynamicCache()
    with torch.no_grad(), press(model.model):
        model.model.model(input_ids=tokens[None, :N], past_key_values=cache)
    mask = select(parse_selector("infokv:window=16"), trace, N // 2 - 16, "keep").mask
    for index, layer in enumerate(cache.layers):
        wanted = torch.stack([trace.keys(index)[head][mask[index, head]] for head in range(2)])
        torch.testing.assert_close(layer.keys[0], wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        out = model.model(tokens[None, N:], past_key_values=cache, position_ids=torch.arange(N, N + 20)[None])
    assert out.logits.isfinite().all()
    assert not any(m._forward_hooks for m in model.model.modules())


@pytest.mark.real_model
def test_the_infokv_press_runs_in_kvpress_pipeline():
    model = load_model("smollm2-135m")
    pipe = kvpress.KVPressTextGenerationPipeline(model=model.model, tokenizer=model.tokenizer)
    context = "The treasure lies under the old oak tree near the river. " + "Rain fell on the hills all day. " * 40
    question = "Where does the treasure lie?"
    press = InfoKVPress(compression_ratio=0.5)
    whole = pipe(context, question=question, max_new_tokens=12)["answer"]
    answer = pipe(context, question=question, press=press, max_new_tokens=12)["answer"]
    assert answer
    assert len(press.scores) == 30
    untouched = pipe(context, question=question, press=InfoKVPress(), max_new_tokens=12)["answer"]
    assert untouched == whole
