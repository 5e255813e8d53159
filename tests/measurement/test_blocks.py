"""Maps by windows and sentences of a span: which tokens go together; numbers are those of separate removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch

from forward_influence.analysis.plots.influence_map import draw_map
from forward_influence.analysis.plots.influence_text import by_token, draw_text
from forward_influence.data.spans import Span, SpanChoice, lay_out
from forward_influence.errors import UsageError
from forward_influence.influence.measure import forward_influence
from forward_influence.measurement.blocks import sentence_blocks, windows
from forward_influence.measurement.leave_one_out import MapRequest, influence_map
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record


def test_windows_cover_everything_and_stop_at_the_end() -> None:
    assert windows(3, 13, 4, 4) == [(3, 7), (7, 11), (11, 13)]
    assert windows(0, 80, 32, 16) == [(0, 32), (16, 48), (32, 64), (48, 80)]
    assert windows(0, 3, 32, 16) == [(0, 3)]


def test_sentences_end_with_their_mark_or_their_line() -> None:
    text = 'Well. It is 3.5 kg!  1. First, add: 3 + 4\n2) Then "stop." Now?\n\nEnd'
    found = sentence_blocks(["<s>", *text], 1, len(text) + 1)
    parts = ["".join(["<s>", *text][a:b]) for a, b in found]
    assert parts == ["Well.", " It is 3.5 kg!", "  1. First, add: 3 + 4\n", '2) Then "stop."', " Now?\n\n", "End"]
    assert sentence_blocks(["One. Tw", "o. ", "Three"], 0, 3) == [(0, 1), (1, 2), (2, 3)]
    assert sentence_blocks(["no mark", " here"], 0, 2) == [(0, 2)]


def test_a_map_of_a_thought_equals_removing_each_window_by_itself(tmp_path: Path) -> None:
    model, tokens = tiny_data.model(dtype=torch.float64), tiny_data.documents(1, 60)[0].segments[0]
    spans = [Span("user", 2, 9), Span("thought", 11, 40), Span("answer", 44, 52)]
    layout = lay_out(spans, SpanChoice.parse("answer", "prompt+thought", "thought"))
    asked = MapRequest(layout.context, layout.continuation, block=8, stride=4, bin_width=5, layout=layout)
    frame = influence_map(model, tokens, asked, tmp_path / "map.parquet")
    assert sorted(set(zip(frame["first"], frame["last"], strict=True)))[-1] == (35, 40) or frame["last"].max() == 40
    assert frame[["low", "high"]].drop_duplicates().to_numpy().tolist() == [[0, 5], [5, 8]]
    trace = record(model, tokens[: layout.context], span=layout.context + layout.continuation)
    positions = torch.arange(43, 51) - layout.context
    for block, (first, last) in enumerate(windows(11, 40, 8, 4)):
        mask = torch.zeros(trace.shape, dtype=torch.bool)
        mask[..., first:last] = True
        continuation = tokens[layout.context : layout.context + layout.continuation]
        [found] = forward_influence(model, trace, continuation, Selection(mask, trace.layers), positions=positions)
        rows = frame[frame["block"] == block]
        assert rows["kl"].tolist() == pytest.approx([float(found.kl[:5].mean()), float(found.kl[5:].mean())], rel=1e-9)
    again = influence_map(model, tokens, asked, tmp_path / "map.parquet")
    assert len(again) == len(frame)
    values = by_token(frame, layout.context)
    assert np.isfinite(values).nonzero()[0].tolist() == list(range(11, 40))
    shares = frame[(frame["first"] <= 15) & (frame["last"] > 15)]
    mean = (shares["kl"] * (shares["high"] - shares["low"])).sum() / 8 / shares["block"].nunique()
    assert values[15] == pytest.approx(mean)
    draw_map(frame, "title")
    figure = draw_text(frame, ["ab $x$\n"] * layout.context, "title")
    assert len(figure.axes[0].patches) == 29


def test_contradictions() -> None:
    with pytest.raises(UsageError, match="`sentences` are blocks by themselves"):
        MapRequest(sentences=True, block=3)
    with pytest.raises(UsageError, match="`stride` 9 leaves tokens out between blocks of 4"):
        MapRequest(block=4, stride=9)
