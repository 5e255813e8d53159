"""Rules of 2025 and 2026 that kvpress has in another form: presses around presses, and presses that run the model."""

from __future__ import annotations

import dataclasses

import kvpress
import pytest
import torch
from kvpress.presses import leverage_press, non_causal_attention_press
from test_parity import RELATIVE, SUBJECTS, held_by_kvpress, note, subject
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from transformers import DynamicCache

from forward_influence.models.loading import wrap_model
from forward_influence.selectors import final_scores, parse_selector, select
from forward_influence.selectors.kvpress_rule import press_scores, rotary_embeddings_restored
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record


def traced(which, *specs, **changes):
    model, tokens = subject(which)
    needs = Needs.merge(need for spec in specs for need in parse_selector(spec).needs)
    return dataclasses.replace(record(model, tokens, needs, chunk=200), **changes)


def compared(which, spec, found, wanted):
    """The largest difference of scores, relative to the largest of the same layer and head."""
    difference = (found.double() - wanted.double()).abs()
    of_largest = float((difference / wanted.double().abs().amax(-1, keepdim=True)).max())
    note(which, spec, of_largest=of_largest)
    return of_largest


@pytest.mark.parametrize("which", SUBJECTS)
@pytest.mark.parametrize("ratio", [0.375, 0.5, 0.75])
def test_criticalkv_keeps_the_same_tokens(which, ratio):
    """With a base that pins nothing: kvpress counts pinned tokens in the first half."""
    spec = "criticalkv:of=keydiff"
    press = kvpress.CriticalKVPress(kvpress.KeyDiffPress(compression_ratio=ratio))
    theirs = held_by_kvpress(press, which, eager=False)
    trace = traced(which, spec)
    ours = select(parse_selector(spec), trace, int(trace.n * (1 - ratio)), "keep").mask
    note(which, spec, ratio=ratio, kept=int(ours.sum()), differing=int((ours & ~theirs).sum()))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("which", SUBJECTS)
def test_what_criticalkv_weighs_agrees(which):
    model, tokens = subject(which)
    spec = "criticalkv:of=keydiff"
    trace = traced(which, spec)
    press = kvpress.CriticalKVPress(kvpress.KeyDiffPress(compression_ratio=0.5), first_stage_ratio=0.0)
    theirs = press_scores(press, model.model, tokens)
    wanted = torch.stack([theirs[i] for i in range(len(theirs))])
    assert compared(which, spec, parse_selector(spec).weighed(trace), wanted) < RELATIVE


@pytest.mark.parametrize("which", SUBJECTS)
@pytest.mark.parametrize("ratio", [0.375, 0.5, 0.75])
def test_chunkkv_keeps_the_same_chunks(which, ratio):
    theirs = held_by_kvpress(kvpress.ChunkKVPress(kvpress.KeyDiffPress(compression_ratio=ratio)), which, eager=False)
    spec = "chunkkv:of=keydiff"
    trace = traced(which, spec)
    rule = parse_selector(spec)
    for layer, mask in enumerate(theirs):
        number = int(mask[0].sum())
        ours = select(rule, trace, number, "keep").mask[layer]
        note(which, spec, ratio=ratio, kept=int(ours.sum()), differing=int((ours & ~mask).sum()))
        assert torch.equal(ours, mask)


@pytest.mark.parametrize("which", SUBJECTS)
def test_compactor_scores_as_the_press_would_with_scaled_logits_and_exact_leverage(which, monkeypatch):
    """The press leaves 1/sqrt(d) out, masks with -1e-9 and projects at random: the first and the last are mended here,
    and the second does nothing where the chunks come out even."""
    model, tokens = subject(which)
    size = model.anatomy.head_size
    even = (len(tokens) - 12) // 4
    assert even * 4 == len(tokens) - 12
    queries = non_causal_attention_press.get_prerope_query_states
    monkeypatch.setattr(
        non_causal_attention_press, "get_prerope_query_states", lambda *given: queries(*given) * size**-0.5
    )
    unit = torch.eye(size) * size**0.5
    monkeypatch.setattr(
        leverage_press.torch, "randn", lambda *shape, dtype, device: unit.to(dtype).expand(*shape[:2], size, size)
    )
    press = kvpress.CompactorPress(compression_ratio=0.5, chunk_size=even, sketch_dimension=size, blending=0.35)
    theirs = press_scores(press, model.model, tokens)
    wanted = torch.stack([theirs[i] for i in range(len(theirs))])
    spec = f"compactor:chunk={even}"
    rounding = 10 if which == "smollm2" else 1  # the press takes leverage in float32 even of a float64 model
    assert compared(which, spec, final_scores(parse_selector(spec), traced(which, spec)), wanted) < rounding * RELATIVE


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("piece", [100, 2048])
@pytest.mark.parametrize("chat", [False, True])
def test_kvzip_scores_and_masks_as_the_press(tmp_path, plus, piece, chat, monkeypatch):
    hf = tiny_model("llama", torch.float32, seed=3, vocab_size=VOCABULARY, max_position_embeddings=1024)
    tokenizer = byte_tokenizer(chat)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(hf.config, "name_or_path", str(tmp_path), raising=False)
    monkeypatch.setattr(hf.config, "_name_or_path", str(tmp_path), raising=False)
    n = 240
    tokens = torch.randint(4, VOCABULARY, (n,), generator=torch.Generator().manual_seed(2))
    if chat:
        front = tokenizer("<|user|>", add_special_tokens=False)["input_ids"]
        tokens[: len(front)] = torch.tensor(front)
    press = kvpress.KVzipPress(compression_ratio=0.5, chunk_size=piece, kvzip_plus_normalization=plus)
    kept = {}
    compress = press.compress_post

    def spy(model):
        kept["scores"] = press.score_val.clone()
        compress(model)

    monkeypatch.setattr(press, "compress_post", spy)
    with torch.no_grad(), rotary_embeddings_restored(hf), press(hf):
        hf.model(input_ids=tokens[None], past_key_values=DynamicCache())
    dropped = torch.zeros(3, 2, n, dtype=torch.bool)
    for index, layer in enumerate(hf.model.layers):
        _, heads, places = layer.self_attn.masked_key_indices
        dropped[index, heads, places] = True
        layer.self_attn.masked_key_indices = None
    spec = f"{'kvzip-plus' if plus else 'kvzip'}:piece={piece}"
    rule = parse_selector(spec)
    trace = record(wrap_model(hf, tokenizer), tokens, Needs.merge(rule.needs), first=4, last=n, chunk=100)
    wanted, found = kept["scores"][:, 0, :, 4:], final_scores(rule, trace)[..., 4:]
    assert compared("tiny", spec, found, wanted) < RELATIVE
    ours = select(rule, trace, n // 2 - 4, "keep").mask
    note("tiny", spec, kept=int(ours.sum()), differing=int((ours & dropped).sum()))
    assert torch.equal(ours, ~dropped)
