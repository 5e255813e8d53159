"""One document and what rules choose in it, token by token: for reading, not for statistics."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from forward_influence.data.cutting import Cut
from forward_influence.errors import UsageError
from forward_influence.measurement.request import Request
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_segments
from forward_influence.selectors import chosen, final_scores
from forward_influence.tracing.recorder import record
from forward_influence.utils.ranges import ranges
from forward_influence.utils.tokenization import text_pieces


@dataclass(frozen=True)
class View:
    """One rule in the layer and head looked at.

    Attributes:
        rule: its specification.
        ranks: (n,) share of the candidates that score lower, 0 to 1, mean over what is looked at; 0 outside.
        selected: (n,) share of the layers and heads looked at that select the token.
    """

    rule: str
    ranks: Tensor
    selected: Tensor


@dataclass(frozen=True)
class Inspected:
    """Scores and selections of some rules on one context.

    Attributes:
        name: of the document.
        tokens: (n,) ids; `pieces`: their text, as `tokenizing.text_pieces` gives it.
        rules: specifications.
        scores: per rule (L, H, n); `masks`: per rule (L, H, n) bool.
        layers: model layers of the axis L.
        first, last: candidates are first <= i < last.
        budget: as typed; `number`: candidates that it selects per layer and head (on average, for rules that divide
            it); `mode`: "drop" or "keep".
    """

    name: str
    tokens: Tensor
    pieces: list[str]
    rules: list[str]
    scores: list[Tensor]
    masks: list[Tensor]
    layers: tuple[int, ...]
    first: int
    last: int
    budget: str
    number: int
    mode: str

    def view(self, rule: int, layer: int | None, head: int | None) -> View:
        """A rule in a model layer and kv head; None averages over all.

        Raises:
            UsageError: a layer or head that there is not.
        """
        if layer is not None and layer not in self.layers:
            raise UsageError(
                f"`layer` {layer} cannot be looked at; the full-attention layers are {ranges(self.layers)}"
            )
        heads = self.masks[rule].shape[1]
        if head is not None and not 0 <= head < heads:
            raise UsageError(f"`head` {head} does not exist; the model has kv heads 0 to {heads - 1}")
        rows = slice(None) if layer is None else slice(self.layers.index(layer), self.layers.index(layer) + 1)
        columns = slice(None) if head is None else slice(head, head + 1)
        inside = self.scores[rule][rows, columns, self.first : self.last]
        below = inside.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True).double() / max(inside.shape[-1] - 1, 1)
        ranks = torch.zeros(len(self.tokens), dtype=torch.float64)
        ranks[self.first : self.last] = below.mean((0, 1)).cpu()
        return View(self.rules[rule], ranks, self.masks[rule][rows, columns].double().mean((0, 1)).cpu())

    def caption(self, layer: int | None, head: int | None) -> str:
        """What is looked at and how much is selected in it, in words."""
        n, candidates = len(self.tokens), self.last - self.first
        where = "all layers" if layer is None else f"layer {layer}"
        heads = "all heads" if head is None else f"head {head}"
        selected = (
            f"{self.number} of {candidates} candidates per layer and head ({n} tokens, {n - candidates} protected)"
        )
        would = "would leave the cache" if self.mode == "drop" else "would stay in the cache, with the protected ones"
        return f"{where}, {heads}; budget {self.budget} selects {selected}, which {would}"

    def legend(self, layer: int | None, head: int | None, selected: str = "bold and underlined") -> str:
        """What shading and marks mean; `selected` says how what is selected looks."""
        one = layer is not None and head is not None
        by = "" if one else " by at least half of the layers and heads looked at"
        return f"the stronger the shade, the higher the rank among the candidates; {selected} is selected{by}"


def inspect_document(model: Model, document: Cut, request: Request) -> Inspected:
    """Score and select with every rule of a request, at its first budget, on a document's first segment.

    Raises:
        UsageError: a rule that looks ahead.
        ForwardInfluenceError: too few tokens, or ids that the model does not know.
    """
    context = checked_segments(model, document, request.context)[0][: request.context]
    candidates = request.candidates
    trace = record(model, context, request.needs, span=request.span, first=candidates.first, last=candidates.last)
    if request.needs.looks_ahead:
        raise UsageError("rules that look ahead cannot be inspected: there is no continuation; use `measure`")
    number = candidates.to_choose(request.parsed_budgets[0], request.mode)
    rules = [rule.at(request.seed) for rule in request.rules]
    scores = [final_scores(rule, trace) for rule in rules]
    masks = [chosen(rule, trace, s, number, request.mode) for rule, s in zip(rules, scores, strict=True)]
    return Inspected(
        name=document.document.name,
        tokens=context.cpu(),
        pieces=text_pieces(model.tokenizer, context.tolist()),
        rules=[rule.spec for rule in rules],
        scores=scores,
        masks=masks,
        layers=trace.layers,
        first=candidates.first,
        last=candidates.last,
        budget=request.parsed_budgets[0].text,
        number=number,
        mode=request.mode,
    )


def scores_table(found: Inspected) -> pd.DataFrame:
    """Per-token scores: a row per rule, layer, head and token, with `score`, `selected` and `candidate`."""
    parts = []
    n = len(found.tokens)
    candidate = [found.first <= i < found.last for i in range(n)]
    for rule, scores, mask in zip(found.rules, found.scores, found.masks, strict=True):
        for row, layer in enumerate(found.layers):
            for head in range(mask.shape[1]):
                columns = {
                    "rule": rule,
                    "layer": layer,
                    "head": head,
                    "position": range(n),
                    "token": found.tokens.numpy(),
                    "text": found.pieces,
                    "score": scores[row, head].float().cpu().numpy(),
                    "selected": mask[row, head].cpu().numpy(),
                    "candidate": candidate,
                }
                parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


_STYLE = """
body{font:15px/1.7 Georgia,serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:#17202a;background:#fff}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:2rem}
h2{font:600 1rem system-ui,sans-serif;overflow-wrap:anywhere}
.text{white-space:pre-wrap;overflow-wrap:anywhere}
span{border-radius:2px}.s{text-decoration:underline;text-decoration-thickness:2px;font-weight:600}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#14181c}}
"""


def html_page(found: Inspected, layer: int | None, head: int | None) -> str:
    """A page without scripts or anything fetched: each rule's text, shaded by rank, what is selected underlined."""
    columns = []
    for index in range(len(found.rules)):
        view = found.view(index, layer, head)
        spans = []
        for i, (piece, rank, share) in enumerate(zip(found.pieces, view.ranks, view.selected, strict=True)):
            mark = ' class="s"' if share >= 0.5 else ""
            tip = f"token {i}: rank {float(rank):.2f}, selected {float(share):.2f}"
            colour = f"background:rgb(30 110 200 / {float(rank) * 0.6:.2f})"
            spans.append(f'<span{mark} style="{colour}" title="{tip}">{html.escape(piece)}</span>')
        columns.append(f"<section><h2>{html.escape(view.rule)}</h2><div class=text>{''.join(spans)}</div></section>")
    name = html.escape(found.name)
    caption, legend = found.caption(layer, head), found.legend(layer, head)
    note = html.escape(f"{caption[0].upper()}{caption[1:]}. {legend[0].upper()}{legend[1:]}.")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><h1>{name}</h1><p>{note}</p>"
        f"<main>{''.join(columns)}</main></html>\n"
    )
