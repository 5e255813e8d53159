"""What is kept, compression by compression, against scores computed in float64 from definitions over what was held."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from visible_sets import Pass, full_pass, generated

from forward_influence.compression import compress, make_compressor
from forward_influence.compression.choice import Held, choose
from forward_influence.instrument.lm_head import ReplayedHead
from forward_influence.models.loading import wrap_model
from forward_influence.tracing.recorder import record

PROMPT, EVERY, FIRST, LAST, BUDGET = 70, 10, 4, 8, 0.4
GROUP = 2


class Judge:
    """Scores of one kv head of one layer for the tokens it held, by definition."""

    def __init__(self, seen: Pass, tokens: Tensor, visible: dict[int, Tensor]) -> None:
        self.seen, self.tokens, self.visible = seen, tokens, visible

    def weights(self, layer: int, head: int, query: int, columns: list[int]) -> Tensor:
        """softmax(q k / sqrt(d)) of one query of one query head over some tokens at or before it."""
        q, k = self.seen.queries[layer][head, query], self.seen.keys[layer][head // GROUP]
        logits = torch.tensor([float(q @ k[j]) / math.sqrt(len(q)) if j <= query else -math.inf for j in columns])
        return torch.softmax(logits.double(), 0)

    def observed(self, layer: int, kv: int, held: list[int], now: int, window: int) -> Tensor:
        """SnapKV over the entries before the window; 0 in it."""
        before = len(held) - window
        rows = []
        for head in range(kv * GROUP, (kv + 1) * GROUP):
            mean = sum(self.weights(layer, head, t, held) for t in range(now - window, now))[:before] / window
            padded = [0.0, 0.0, *mean.tolist(), 0.0, 0.0]
            rows.append([sum(padded[i : i + 5]) / 5 for i in range(before)])
        pooled = torch.tensor(rows, dtype=torch.float64).mean(0)
        return torch.cat([pooled, torch.zeros(window, dtype=torch.float64)])

    def entropy(self, position: int) -> float:
        """Of the distribution that the token at a position was drawn from."""
        if position == 0:
            return 0.0
        p = self.seen.logits[position - 1].softmax(-1)
        return -float((p * p.log()).sum())

    def information(self, layer: int, held: list[int], after: int = 0) -> Tensor:
        last = max(self.seen.hidden)
        change = [
            0.0
            if layer == last
            else 1 - float(torch.cosine_similarity(self.seen.hidden[layer][j], self.seen.hidden[last][j], dim=0))
            for j in held
        ]
        found = [(d + 1) * self.entropy(j + after) for d, j in zip(change, held, strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    def attention(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return self.observed(layer, kv, held, now, LAST)

    def infokv(self, layer: int, kv: int, held: list[int], now: int, after: int = 0) -> Tensor:
        inside = slice(FIRST, len(held) - LAST)
        attended = self.observed(layer, kv, held, now, LAST)[inside]
        scores = torch.zeros(len(held), dtype=torch.float64)
        scores[inside] = 0.9 * attended / attended.sum() + 0.1 * self.information(layer, held, after)[inside].softmax(0)
        return scores

    def h2o(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        total = torch.zeros(now, dtype=torch.float64)
        for head in range(kv * GROUP, (kv + 1) * GROUP):
            for t in range(now):
                columns = self.visible[layer][kv, t].nonzero()[:, 0].tolist()
                columns = [j for j in columns if j <= t]
                total[columns] += self.weights(layer, head, t, columns) / GROUP
        return total[held]

    def observed_attention(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return self.h2o(layer, kv, held, now) / torch.tensor([now - j for j in held])

    def tova(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return sum(self.weights(layer, head, now - 1, held) for head in range(4)) / 4

    def surprisal(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        log_p = self.seen.logits.log_softmax(-1)
        return torch.tensor([0.0 if j == 0 else -float(log_p[j - 1, self.tokens[j]]) for j in held]).double()

    def next_infokv(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return self.infokv(layer, kv, held, now, after=1)

    def own_entropy(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return torch.tensor([self.entropy(j) for j in held], dtype=torch.float64)

    def next_entropy(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        return torch.tensor([self.entropy(j + 1) for j in held], dtype=torch.float64)

    def lazy_eviction(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        """Step by step, each over what it saw."""
        last, longest = list(range(now)), [0] * now
        for t in range(now):
            columns = [j for j in self.visible[layer][kv, t].nonzero()[:, 0].tolist() if j <= t]
            rows = [self.weights(layer, head, t, columns) for head in range(kv * GROUP, (kv + 1) * GROUP)]
            for j, weight in zip(columns, torch.stack(rows).amax(0).tolist(), strict=True):
                if weight >= 0.05:
                    longest[j], last[j] = max(longest[j], t - last[j]), t
        scores = [
            2 / (1 + math.exp((now - 1 - last[j]) / longest[j])) + 2 / (1 + math.exp(1 / longest[j]))
            if longest[j]
            else 0.0
            for j in held
        ]
        return torch.tensor(scores, dtype=torch.float64)

    def cur(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        keys = self.seen.keys[layer][kv][held].square().sum(-1)
        shares = torch.cat([part / part.sum() for part in keys.split(16)])
        shares[:4] = 1
        return shares

    def rpc(self, layer: int, kv: int, held: list[int], now: int) -> Tensor:
        """Among generated tokens before the last R."""
        before = [j for j in held if PROMPT <= j < now - 5]
        attention = sum(self.weights(layer, head, t, before) for head in range(4) for t in range(now - 5, now)) / 4
        padded = [0.0] * 3 + attention.tolist() + [0.0] * 3
        pooled = torch.tensor([sum(padded[i : i + 7]) / 7 for i in range(len(before))], dtype=torch.float64)
        scores = torch.full((len(held),), -1.0, dtype=torch.float64)
        scores[held.index(before[0]) : held.index(before[0]) + len(before)] = pooled
        return scores


RULES = {
    "attention": Judge.attention,
    "infokv": Judge.infokv,
    "infokv:alignment=next": Judge.next_infokv,
    "h2o": Judge.h2o,
    "observed-attention": Judge.observed_attention,
    "tova": Judge.tova,
    "surprisal": Judge.surprisal,
    "entropy": Judge.own_entropy,
    "entropy:alignment=next": Judge.next_entropy,
    "rpc:window=5": Judge.rpc,
    "lazy-eviction:alpha=0.05,window=8": Judge.lazy_eviction,
    "cur:kind=key": Judge.cur,
}


@pytest.mark.parametrize("name", list(RULES))
def test_kept_are_the_best_of_what_was_held(name):
    model = tiny_model("llama", num_hidden_layers=2)
    protect = None if name.startswith("rpc") else LAST
    with compress(model, name, BUDGET, every=EVERY, protect_last=protect, scheme="rule") as cache:
        tokens, _, snapshots = generated(model, cache, PROMPT, 32)
    assert cache.stats.compressions >= 3
    read = tokens[:-1]
    visible = snapshots.visible(len(read), 2)
    judge = Judge(full_pass(model, read, visible), read, visible)
    compressed = {event.seen for event in cache.stats.events}
    before: dict[int, list[list[int]]] = {0: [[], []], 1: [[], []]}
    start = checked = 0
    for now, after in snapshots.steps:
        if now in compressed and (now > PROMPT or not name.startswith("rpc")):
            for layer in (0, 1):
                for kv in (0, 1):
                    held = before[layer][kv] + list(range(start, now))
                    first, last = (PROMPT, 5) if name.startswith("rpc") else (FIRST, LAST)
                    number = len(after[layer][kv]) - first - last
                    scores = RULES[name](judge, layer, kv, held, now)[first : len(held) - last]
                    best = sorted(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:number])
                    wanted = held[:first] + [held[first + i] for i in best] + held[len(held) - last :]
                    assert after[layer][kv] == wanted, (name, now, layer, kv)
                    checked += 1
        before, start = after, now
    assert checked >= 12


@pytest.mark.parametrize(
    "name",
    [
        "attention", "infokv", "h2o", "observed-attention", "tova", "expected-attention", "streaming", "knorm",
        "pyramid:window=4", "keydiff", "rkv", "random", "entropy", "low-entropy", "surprisal", "adakv",
        "caote", "lazy-eviction:alpha=0.05", "triattention", "q-filter", "lagkv:lag=16", "cur", "capkv",
        "compactor:chunk=16", "criticalkv", "criticalkv:of=attention(heads=adaptive)", "chunkkv", "vase",
        "expected-attention-adakv",
        "infokv:layers=adaptive", "position-matched", "mix:0.9*attention+0.1*entropy", "product:attention*surprisal",
    ],
)  # fmt: skip
def test_after_the_prefill_a_recorded_pass_gives_the_same_choice(name):
    """The rules' own tests judge them on recorded passes; a running cache must not differ."""
    model = tiny_model("llama")
    tokens = torch.randint(3, 97, (90,), generator=torch.Generator().manual_seed(3))
    compressor = make_compressor(name, 0.4, protect_last=6)
    trace = record(wrap_model(model), tokens, compressor.needs, span=200)
    everything = torch.arange(90).expand(2, -1)
    held = Held(positions=[everything] * 3, seen=90, prompt=90, contiguous=90, number=0)
    wanted = choose(compressor, held, lambda group, skip: trace, lambda positions: trace)
    assert wanted is not None
    with compress(model, compressor) as cache, torch.no_grad():
        model(tokens[None], past_key_values=cache, logits_to_keep=1)
    for layer, keep in zip(cache.layers, wanted, strict=True):
        for kv, row in enumerate(layer.positions().tolist()):
            assert [p for p in row if p >= 0] == keep[kv].nonzero()[:, 0].tolist()


def test_a_head_that_runs_the_model_is_not_recorded():
    """Some models' logits are had by running them once more; that pass must leave signals and masks alone."""
    model = tiny_model("llama")
    plain = wrap_model(model)
    replayed = dataclasses.replace(plain, anatomy=dataclasses.replace(plain.anatomy, head=ReplayedHead(model)))
    tokens = torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(3))
    needs = make_compressor("infokv", 0.5).needs
    one, other = (record(m, tokens, needs, chunk=25) for m in (plain, replayed))
    assert torch.equal(one.representation_change, other.representation_change)
    assert all(torch.equal(one.queries(i, 64), other.queries(i, 64)) for i in range(len(one.layers)))
    held = []
    for m in (plain, replayed):
        with compress(m, "infokv", 0.4, every=5, scheme="heads", protect_last=LAST) as cache, torch.no_grad():
            for part in tokens.split(20):
                model.model(part[None], past_key_values=cache)
        held.append([layer.positions().tolist() for layer in cache.layers])
    assert held[0] == held[1]
