"""Signals as objects: one of one's own in one file works everywhere, and is the same however a sequence is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_data
import torch
from safetensors import safe_open
from tiny import tiny_model
from visible_sets import generated, prompt

from forward_influence.compression import compress
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.memory import peak
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.models.sizes import Sizes
from forward_influence.selectors import discover, parse_selector
from forward_influence.selectors import registry as rules
from forward_influence.selectors.rule_files import load_file
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.part import Group
from forward_influence.tracing.recorder import Recorder, ready_rotation, record
from forward_influence.tracing.signals import TokenSignal, known, parsed, register, registry
from forward_influence.tracing.store import TraceStore, packed, trace_key, unpacked

FILE = Path(__file__).with_name("toy_signal.py")
RULE = f"{FILE}:recurrent"
N = 60


@pytest.fixture(autouse=True, scope="module")
def registered():
    """What the file registers is gone again when the tests here are done."""
    discover(), known()  # all that is there anyway stays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_rules", dict(rules._rules))
        patch.setattr(registry, "_signals", dict(registry._signals))
        yield


@pytest.fixture(autouse=True)
def toy(registered):
    """The file, loaded as `--selector` loads it."""
    parse_selector(RULE)
    module = load_file(FILE)
    for name in ("recurrence", "key_size"):
        assert name in known()
    module.SEEN.clear()
    return module


def few_words(n: int = N, seed: int = 5) -> torch.Tensor:
    return torch.randint(3, 12, (n,), generator=torch.Generator().manual_seed(seed))


def recurrences(tokens: list[int], window: int) -> list[int]:
    """By definition: how often tokens[i] is among the `window` before it."""
    return [tokens[max(0, i - window) : i].count(token) for i, token in enumerate(tokens)]


@pytest.mark.parametrize("chunk", [7, 512])
def test_a_signal_of_ones_own_is_recorded_over_a_context(chunk):
    tokens = few_words()
    trace = record(wrap_model(tiny_model("llama")), tokens, Needs.merge({"recurrence:8", "recurrence"}), chunk=chunk)
    assert trace.signal("recurrence:8").tolist() == recurrences(tokens.tolist(), 8)
    assert trace.signal("recurrence").tolist() == trace.signal("recurrence:16").tolist()
    assert trace.signal("recurrence").tolist() == recurrences(tokens.tolist(), 16)
    with pytest.raises(UsageError, match=r'recurrence was not recorded; .*: needs=\{"recurrence:5"\}'):
        trace.signal("recurrence:5")


def test_it_serves_a_measurement(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(1, 100)
    words = dataclasses.replace(documents[0], segments=(few_words(100),))
    request = Request(selectors=(RULE,), context=N, continuation=40, protect_last=8, bin_width=10, save_selections=True)
    run = measure(model, [words], request, tmp_path / "run")
    [row] = [i for i, row in enumerate(run.rows()) if row["kind"] == "condition" and row["selector"] == "recurrent"]
    with safe_open(run.selections_path(run.documents[0]["part"]), "pt") as file:
        chosen = file.get_tensor(f"selection/{row}")
    trace = record(model, words.segments[0][:N])
    sizes = torch.stack([trace.keys(i).norm(dim=-1) for i in range(len(trace.layers))])
    scores = torch.tensor(recurrences(words.segments[0][:N].tolist(), 8)) + sizes / sizes.max()
    number = int(chosen[0, 0].sum())
    assert 0 < number < 48
    best = scores[..., 4:52].sort(descending=True, stable=True).indices[..., :number] + 4
    assert torch.equal(torch.zeros_like(chosen).scatter(-1, best, True), chosen)


def test_it_is_recorded_while_a_cache_is_compressed(toy):
    model = tiny_model("llama")
    with compress(model, RULE, budget=24, every=5, protect_last=4) as cache:
        sequence, _, _ = generated(model, cache)
        columns = cache._rows.rows[0].recorder.columns
        held = {int(p) for layer in cache.layers for p in layer.positions().flatten()}
        assert columns.column("recurrence:8").shape[-1] == len(held), "what is held no more is forgotten"
    assert sequence[:70].tolist() == prompt()[0].tolist()
    whole = recurrences(sequence.tolist(), 8)
    assert len(toy.SEEN) > 5
    assert any(bool((p[:, :1] != p).any()) for p, *_ in toy.SEEN), "heads hold different tokens"
    for positions, tokens, count, size, keys in toy.SEEN:
        assert torch.equal(tokens.expand_as(positions), sequence[positions])
        assert torch.equal(count.expand_as(positions), torch.tensor(whole)[positions])
        torch.testing.assert_close(size, keys)


def test_it_is_kept_on_disk_until_its_file_changes(tmp_path, toy, monkeypatch):
    model, tokens = tiny_data.model(), few_words()
    needs = Needs.merge({"recurrence:8", "key_size"})
    trace, store = record(model, tokens, needs), TraceStore(tmp_path)
    key = trace_key(model, tokens, N, 512)
    store.put(key, packed(trace))
    entry = store.get(key, torch.device("cpu"))
    again = unpacked(entry, model, needs, 0, N, False)
    assert torch.equal(again.signal("recurrence:8"), trace.signal("recurrence:8"))
    assert torch.equal(again.signal("key_size"), trace.signal("key_size"))
    assert unpacked(entry, model, Needs.merge({"recurrence:9"}), 0, N, False) is None
    with monkeypatch.context() as patch:
        patch.delitem(registry._signals, "recurrence")
        bare = unpacked(entry, model, Needs(), 0, N, False)
        assert [signal.name for signal, _ in bare.needs.asked] == ["key_size"], "the others are left where they are"
    changed = toy.Recurrence()
    monkeypatch.setitem(vars(changed), "origin", "another text")
    monkeypatch.setitem(registry._signals, "recurrence", changed)
    assert unpacked(entry, model, Needs.merge({"recurrence:8"}), 0, N, False) is None
    assert unpacked(entry, model, Needs.merge({"key_size"}), 0, N, False) is not None


def test_a_run_finds_it_in_the_store(tmp_path, monkeypatch):
    model = tiny_data.model()
    request = Request(selectors=(RULE,), context=N, continuation=20, protect_last=8)
    [document], store = tiny_data.documents(1, 80), TraceStore(tmp_path)
    first = measure_document(model, document, request, store=store, controls=False)

    def refuse(*args, **named):
        raise AssertionError("the context is run again")

    monkeypatch.setattr("forward_influence.measurement.document.record", refuse)
    again = measure_document(model, document, request, store=store, controls=False)
    one, other = ([row["kl"].tolist() for row in m.rows if row["kind"] == "condition"] for m in (first, again))
    assert len(one) == 1
    assert one == other


def test_the_memory_formula_counts_it():
    sizes = Sizes(layers=3, query_heads=4, kv_heads=2, head_size=8, hidden=32, intermediate=64, vocabulary=97)
    bare = peak(sizes, 64, 64, 1, 32)
    with_it = peak(sizes, 64, 64, 1, 32, needs=Needs.merge({"recurrence:8", "key_size"}))
    assert with_it.signals - bare.signals == 8 * 64 + 3 * 2 * 64 * 4
    assert with_it.recording - bare.recording == 8 * 8


KEPT = ["window:8", "accumulated_attention", "key_size", "recurrence", "query_moments", "rotated_query_moments",
        "query_lengths", "attended_steps", "chunk_attention:16"]  # fmt: skip


@pytest.mark.parametrize("need", KEPT)
def test_what_a_signal_says_it_keeps_is_what_the_trace_holds(need):
    model = tiny_data.model()
    sizes = Sizes.of(model.model.config)
    trace = record(model, few_words(), Needs.merge({need}), chunk=25)
    signal, number = parsed(need)
    tensors = signal.packed(trace.signal(need))
    kept = [t for name, t in tensors.items() if not name.startswith("mean/")]  # beside covariances, means are nothing
    assert sum(t.untyped_storage().nbytes() for t in kept) == signal.cost(sizes, N, 25, number).kept


LIVE = ["window:8", "window:100", "entropy:9", "entropy:0", "next_entropy:9", "surprisal", "representation_change",
        "accumulated_attention", "query_moments", "rotated_query_moments", "query_lengths", "attended_steps:50000",
        "chunk_attention:16", "recurrence", "key_size"]  # fmt: skip


def test_every_signal_that_can_be_live_is_tried_here():
    assert {need.partition(":")[0] for need in LIVE} == {s.name for s in known().values() if s.live and s.kept}


@pytest.mark.parametrize("need", LIVE)
@pytest.mark.parametrize("cuts", [[N], [30, 1, 1, 1, 20, 7], [1] * N])
def test_a_signal_is_the_same_however_the_sequence_is_cut(need, cuts):
    """The whole context at once, and the recorder of generations fed a prompt in parts and tokens one by one."""
    model, tokens, needs = wrap_model(tiny_model("llama", torch.float64)), few_words(), Needs.merge({need})
    whole = record(model, tokens, needs)
    anatomy, cache = model.anatomy, SelectiveCache(model.model.config, span=N)
    layers = anatomy.full_layers(N)
    rotation = ready_rotation(model.model, tokens[:1], layers, N) if needs.rotation else None
    recorder = Recorder(anatomy, cache, needs, model.device, rotation)
    watched = anatomy.decoder_layers if needs.hidden else {}
    if rotation is not None:
        rotation.attach()
    try:
        with torch.no_grad(), Instrument(model.model, recorder, watched, cache, span=N) as instrument:
            for part in tokens.split(cuts):
                recorder.after_pass(part, forward_hidden(model.model, part, instrument))
            group = Group(tuple(range(len(layers))), tuple(range(anatomy.kv_heads)), N)
            positions = torch.arange(N).expand(len(layers), anatomy.kv_heads, N)
            signal, number = parsed(need)
            live = recorder.trace(group, positions, False).signal(need)
            spread = recorder.trace(group, positions, True).signal(need)  # as where heads hold different tokens
    finally:
        if rotation is not None:
            rotation.detach()
    wanted, found = (signal.packed(value) for value in (whole.signal(need), live))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
    if isinstance(signal, TokenSignal):
        shape = (len(layers), anatomy.kv_heads, N)
        plain = live if live.dim() == 1 else live[:, None]
        assert torch.equal(spread, plain.expand(shape))
    assert signal.key(number) in recorder.recordings


def test_names_are_checked_when_a_signal_is_registered():
    class Taken(TokenSignal):
        name = "surprisal"

    class Odd(TokenSignal):
        name = "two words"

    with pytest.raises(UsageError, match=r"a signal named 'surprisal' exists already \(forward_influence"):
        register(Taken())
    with pytest.raises(UsageError, match="'two words' cannot be declared; use letters, digits and _"):
        register(Odd())
    assert type(known()["surprisal"]).__module__.startswith("forward_influence.")


def test_needs_merge_into_what_serves_all_rules():
    needs = Needs.merge(
        ["window:8", "window", "entropy:9", "entropy", "surprisal", "gradients_near:2", "gradients_far:5"]
    )
    assert needs.texts == {
        "window:64", "entropy:9", "entropy:256", "gradients_near:5", "gradients_far:5", "surprisal",
    }  # fmt: skip
    assert needs.numbers("entropy") == (256, 9)
    assert "surprisal" in needs
    assert "next_entropy" not in needs
    assert needs.head
    assert needs.looks_ahead
    assert not needs.live
    assert not needs.hidden
    assert not needs.rotation
