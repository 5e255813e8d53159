"""Every rule's scores against a second, plain implementation, in float64 on tiny models."""

from __future__ import annotations

import plain_rules as plain
import pytest
import torch
from plain_rules import N, seen
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import final_scores, parse_selector, select
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.tracing.trace import Trace

#: Grouped queries; sliding and full layers with query norms; attention sinks with YaRN.
FAMILIES = ("llama", "gemma3_text", "gpt_oss")
FIRST, LAST = 4, N - 8


def traced(family: str, *specs: str, first: int = FIRST, last: int = LAST, chunk: int = 13) -> Trace:
    rules = [parse_selector(spec) for spec in specs]
    needs = Needs.merge(need for rule in rules for need in rule.needs)
    return record(wrap_model(seen(family).model), seen(family).tokens, needs, first=first, last=last, chunk=chunk)


def scores_of(family: str, spec: str, **changes: int) -> tuple[Trace, Tensor]:
    trace = traced(family, spec, **changes)
    return trace, final_scores(parse_selector(spec), trace)


def stacked(trace: Trace, score) -> Tensor:
    """(L, H, n) of score(layer, kv head)."""
    return torch.stack([torch.stack([score(layer, kv) for kv in range(trace.kv_heads)]) for layer in trace.layers])


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("group", ["mean", "max", "sum"])
@pytest.mark.parametrize("pooling", ["average", "max", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention(family, pooling, group):
    trace, found = scores_of(family, f"attention:window=8,pooling={pooling},group={group}")
    same(found, stacked(trace, lambda la, kv: plain.snapkv(seen(family), la, kv, 8, 5, pooling, group)))


def test_attention_window_and_kernel():
    trace, found = scores_of("llama", "attention:window=16,kernel=7")
    same(found, stacked(trace, lambda la, kv: plain.snapkv(seen("llama"), la, kv, 16, 7)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("h2o", plain.h2o),
        ("observed-attention", plain.observed),
        ("tova", plain.tova),
        ("knorm", plain.knorm),
        ("keydiff", plain.keydiff),
    ],
)
def test_attention_and_key_rules(family, name, reference):
    trace, found = scores_of(family, name)
    same(found, stacked(trace, lambda la, kv: reference(seen(family), la, kv)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_k", [0, 8, 256])
@pytest.mark.parametrize("alignment", ["own", "next"])
def test_entropy(family, top_k, alignment):
    _, found = scores_of(family, f"entropy:top_k={top_k},alignment={alignment}")
    wanted = plain.entropy(seen(family), top_k, alignment)
    same(found, wanted.expand_as(found))
    _, low = scores_of(family, f"low-entropy:top_k={top_k},alignment={alignment}")
    same(low, -found)


def test_entropy_of_the_whole_vocabulary_equals_top_k_of_its_size():
    _, whole = scores_of("llama", "entropy:top_k=0")
    _, counted = scores_of("llama", "entropy:top_k=97")
    same(whole, counted)


def test_entropy_is_by_default_the_uncertainty_about_the_token_itself():
    _, found = scores_of("llama", "entropy")
    given = torch.stack([torch.distributions.Categorical(logits=row).entropy() for row in seen("llama").logits])
    same(found[0, 0, 1:], given[:-1])  # 97 words: all of them are among the 256 largest
    assert float(found[0, 0, 0]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_surprisal_is_about_the_token_itself(family):
    _, found = scores_of(family, "surprisal")
    same(found[0, 0], plain.surprisal(seen(family)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("alpha", "tau"), [(0.9, 1.0), (0.0, 0.5), (1.0, 1.0)])
def test_infokv(family, alpha, tau):
    trace, found = scores_of(family, f"infokv:alpha={alpha},tau={tau},top_k=16,window=8")
    candidates = list(range(FIRST, LAST))
    same(found, stacked(trace, lambda la, kv: plain.infokv(seen(family), la, kv, candidates, alpha, tau, 16, 8)))


@pytest.mark.parametrize("per", ["entry", "layer", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infokv_with_alpha_1_selects_what_attention_selects(per, dtype):
    from tiny import tiny_model

    rules = [parse_selector(f"{name},per={per}") for name in ("infokv:alpha=1,window=8", "attention:window=8")]
    model = wrap_model(tiny_model("llama", dtype))
    trace = record(model, seen("llama").tokens, Needs.merge(rules[0].needs), first=FIRST, last=LAST)
    for number in (1, 7, 30):
        one, other = (select(rule, trace, number).mask for rule in rules)
        assert torch.equal(one, other)


def test_normalising_keeps_apart_what_float32_tells_apart():
    from forward_influence.selectors.information import normalised

    trace = traced("llama", first=0, last=N)
    near = torch.arange(N, dtype=torch.int32) + torch.tensor(1.9).view(torch.int32)
    scores = near.view(torch.float32).expand(3, 2, N)  # neighbouring float32 numbers
    assert (normalised(scores, trace.candidates).diff(dim=-1) > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_expected_attention(family):
    trace, found = scores_of(family, "expected-attention:future=40")
    scaling = [g.scaling for g in trace.geometry]
    wanted = stacked(trace, lambda la, kv: plain.expected(seen(family), la, kv, 40, scaling[trace.layers.index(la)]))
    same(found[..., 4:], wanted)
    assert float(found[..., :4].min()) > float(found[..., 4:].max())


def test_expected_attention_where_layers_rotate_at_different_speeds():
    wide = seen("gemma3_text", sliding_window=64)
    trace = record(wrap_model(wide.model), wide.tokens, Needs.merge({"query_moments"}), first=FIRST, last=LAST)
    assert trace.layers == (0, 1, 2), "a window that covers the context is none, and its layer rotates faster"
    found = final_scores(parse_selector("expected-attention:future=40"), trace)
    wanted = stacked(trace, lambda la, kv: plain.expected(wide, la, kv, 40, trace.geometry[la].scaling))
    same(found[..., 4:], wanted)


def test_expected_attention_without_covariance_and_values():
    _, whole = scores_of("llama", "expected-attention")
    trace, found = scores_of("llama", "expected-attention:covariance=false,values=false")
    same(found[..., 4:].sum(-1), torch.ones(found.shape[:2]))
    assert not torch.allclose(whole, found)
    _, lifted = scores_of("llama", "expected-attention:covariance=false,epsilon=0.5")
    norms = torch.stack([trace.values(i)[:, 4:].norm(dim=-1) for i in range(len(trace.layers))])
    same(lifted[..., 4:], (found[..., 4:] + 0.5) * norms)


def test_rotation_hooks_are_gone_after_recording():
    model = wrap_model(seen("llama").model)
    record(model, seen("llama").tokens, Needs.merge({"query_moments"}))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_rpc(family):
    trace, found = scores_of(family, "rpc:window=8,kernel=7")
    scaling = trace.geometry[0].scaling
    same(found, stacked(trace, lambda la, kv: plain.rpc(seen(family), la, 8, 7, scaling)))


@pytest.mark.parametrize("family", FAMILIES)
def test_rkv(family, monkeypatch):
    trace, found = scores_of(family, "rkv:window=8,weight=0.3")
    scaling = trace.geometry[0].scaling
    wanted = stacked(trace, lambda la, kv: plain.rkv(seen(family), la, kv, 8, 7, 0.3, 0.5, scaling))
    same(found, wanted)
    monkeypatch.setattr("forward_influence.selectors.rkv._SIMILARITIES", 7 * N * trace.kv_heads)
    same(final_scores(parse_selector("rkv:window=8,weight=0.3"), trace), wanted)


@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.8, 1.5])
def test_rkv_forgives_the_latest_key_above_any_threshold(threshold):
    spec = f"rkv:window=8,weight=0.3,threshold={threshold}"
    trace, found = scores_of("llama", spec)
    scaling = trace.geometry[0].scaling
    same(found, stacked(trace, lambda la, kv: plain.rkv(seen("llama"), la, kv, 8, 7, 0.3, threshold, scaling)))
    assert not torch.allclose(found, final_scores(parse_selector("rkv:window=8,weight=0.3"), trace))


def test_streaming_first_and_recent():
    trace = traced("llama", first=0, last=N)
    found = select(parse_selector("streaming"), trace, 10).mask[0, 0].nonzero().flatten().tolist()
    assert found == [0, 1, 2, 3, *range(N - 6, N)]
    assert select(parse_selector("recent"), trace, 3).mask[0, 0].nonzero().flatten().tolist() == [57, 58, 59]
    assert select(parse_selector("first"), trace, 3).mask[0, 0].nonzero().flatten().tolist() == [0, 1, 2]


def test_random_is_seeded_and_of_its_grain():
    trace = traced("llama")
    entry, layer, token = (
        final_scores(parse_selector(f"random:per={per}"), trace) for per in ("entry", "layer", "token")
    )
    assert torch.equal(entry, final_scores(parse_selector("random"), trace))
    assert not torch.equal(entry, final_scores(parse_selector("random").at(1), trace))
    assert not torch.equal(entry[0, 0], entry[0, 1])
    assert torch.equal(layer[0, 0], layer[0, 1])
    assert not torch.equal(layer[0], layer[1])
    assert torch.equal(token, token[:1, :1].expand_as(token))
    assert 0.4 < float(entry.mean()) < 0.6


@pytest.mark.parametrize("of", ["attention(window=8)", "entropy", "recent", "infokv(window=8,heads=adaptive)"])
def test_position_matched_keeps_counts_positions_and_overlap(of):
    rule = parse_selector(f"position-matched:of={of},stratum=16")
    trace = traced("llama", f"position-matched:of={of},stratum=16")
    matched, original = select(rule, trace, 11).mask, select(rule.rule, trace, 11).mask
    assert torch.equal(matched.sum(-1), original.sum(-1))
    for start in range(FIRST, LAST, 16):
        stratum = slice(start, min(start + 16, LAST))
        assert torch.equal(matched[..., stratum].sum(-1), original[..., stratum].sum(-1))
    assert torch.equal(matched, original[..., rule.permutation(trace)]), "one permutation for all heads and layers"
    if of != "recent":
        assert not torch.equal(matched, original)
    assert not torch.equal(matched, select(rule.at(3), trace, 11).mask)


@pytest.mark.parametrize("mode", ["drop", "keep"])
def test_position_matched_says_what_it_matches_and_how_much_is_the_same(mode, tmp_path):
    from forward_influence.measurement.conditions import expand
    from forward_influence.measurement.request import Request
    from forward_influence.measurement.selection_step import choose_all
    from forward_influence.selectors import registry

    (tmp_path / "late.py").write_text(
        "from forward_influence.selectors import Selector, selector\n\n\n"
        "@selector('matched-late')\nclass Late(Selector):\n    power: float = 1.0\n\n"
        "    def scores(self, trace):\n        return (trace.tokens * trace.positions) ** self.power\n"
    )
    specs = (f"{tmp_path}/late.py:Late:power=2", f"position-matched:of={tmp_path}/late.py:Late(power=2),stratum=16")
    budget = "0.2" if mode == "drop" else "52"
    request = Request(specs, (budget,), context=N, continuation=9, protect_last=8, draws=12, mode=mode)
    try:
        trace = traced("llama")
        mine, *matched = choose_all(trace, expand(request, "x", 0), request, Candidates(N, FIRST, LAST), 1).found
        control = request.rules[1]
        assert control.parameters["of_spec"] == request.rules[0].spec == "matched-late:power=2.0"
        assert "of_spec" not in control.spec and parse_selector(control.spec) == control
    finally:
        registry._rules.pop("matched-late", None)
    inside = slice(FIRST, LAST)
    for choice in matched:
        both = choice.whole.mask[..., inside] & mine.whole.mask[..., inside]
        share = float(both.sum() / mine.whole.mask[..., inside].sum())
        assert 0 < share < 1 and choice.notes == {"overlap": pytest.approx(share, abs=1e-6)}
    assert len({choice.notes["overlap"] for choice in matched}) > 1
    assert mine.notes == {}
    assert parse_selector("position-matched:of=attention(window=64)").parameters["of_spec"] == "attention"


def test_position_matched_with_ties_moves_what_was_selected(tmp_path):
    (tmp_path / "flat.py").write_text("def flat(trace):\n    return trace.tokens * 0\n")
    rule = parse_selector(f"position-matched:of={tmp_path / 'flat.py'}:flat,stratum=16")
    trace = traced("llama")
    matched, original = select(rule, trace, 5).mask, select(rule.rule, trace, 5).mask
    assert torch.equal(matched, original[..., rule.permutation(trace)])


def test_mix_and_product_are_sums_and_products_of_shares():
    trace = traced("llama", "attention:window=8", "surprisal", "knorm")
    inside = slice(FIRST, LAST)

    def share(spec):
        raw = final_scores(parse_selector(spec), trace)[..., inside]
        raw = raw - raw.amin(-1, keepdim=True) if bool((raw < 0).any()) else raw
        return raw / raw.sum(-1, keepdim=True)

    mixed = final_scores(parse_selector("mix:0.7*attention(window=8)+0.3*surprisal"), trace)
    same(mixed[..., inside], 0.7 * share("attention:window=8") + 0.3 * share("surprisal"))
    bare = final_scores(parse_selector("mix:surprisal+-2*knorm"), trace)
    same(bare[..., inside], share("surprisal") - 2 * share("knorm"))
    product = final_scores(parse_selector("product:attention(window=8)*knorm"), trace)
    same(product[..., inside], share("attention:window=8") * share("knorm"))
    assert not mixed[..., :FIRST].any()
    assert not mixed[..., LAST:].any()


def test_a_mix_of_attention_and_infokvs_information_ranks_like_infokv_with_alpha_0():
    trace = traced("llama", "infokv:window=8")
    information = select(parse_selector("infokv:alpha=0,window=8"), trace, 9).mask
    alone = select(parse_selector("mix:1*infokv(alpha=0,window=8)+0*attention(window=8)"), trace, 9).mask
    assert torch.equal(information, alone)


@pytest.mark.parametrize("per", ["layer", "token"])
def test_a_mix_of_one_rule_is_that_rule_at_every_grain(per):
    trace = traced("llama", "attention:window=8")
    one = select(parse_selector(f"mix:attention(window=8),per={per}"), trace, 9).mask
    assert torch.equal(one, select(parse_selector(f"attention:window=8,per={per}"), trace, 9).mask)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("mix:0.5*random+0.5*entropy", "draws at random"),
        ("mix:0.5*attention+0.5*pyramid", "budgets of its own"),
        ("mix:0.5*attention+0.5*entropi", "did you mean 'entropy'"),
        ("mix:x*attention", "is not weight\\*rule"),
        ("mix:0.5*", "is not weight\\*rule"),
        ("mix", "is not weight\\*rule"),
        ("product:attention**entropy", "is not rule\\*rule"),
        ("product:attention*entropy(top_k=2", "parentheses do not match"),
        ("infokv:layers=some", "layers=some is unknown"),
        ("infokv:alpha=2", "outside 0 to 1"),
        ("pyramid:beta=0.5", "below 1"),
        ("attention:heads=adaptive,per=token", "needs per=entry"),
        ("attention:heads=most", "heads is one of"),
        ("rkv:weight=2", "outside 0 to 1"),
        ("rpc:kernel=2", "odd number"),
        ("streaming:sinks=-1", "negative"),
        ("expected-attention:future=0", "future is 1 to 1000000"),
        ("position-matched:of=position-matched", "itself position-matched"),
        ("position-matched:per=token", "give the grain"),
        ("position-matched:stratum=1", "permutes nothing"),
    ],
)
def test_senseless_parameters_are_refused(spec, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_selector(spec)
