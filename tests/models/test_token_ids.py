"""Token ids that the model does not know cost the document that has them, and are named; so do unfit documents."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch
from tiny_data import Cut, Named
from tiny_files import VOCABULARY, save_tiny, tiny_llama, tiny_tokenizer
from torch import Tensor, nn

from forward_influence.cli.app import main
from forward_influence.compression import make_compressor
from forward_influence.compression.generation import generate
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.measure import forward_influence
from forward_influence.measurement.inspection import inspect_document
from forward_influence.measurement.leave_one_out import MapRequest, influence_map
from forward_influence.measurement.request import Request
from forward_influence.measurement.screening import screen_document
from forward_influence.models.loading import load_model, wrap_model
from forward_influence.models.token_ids import require_known
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

WANTED = {
    "selectors": ("recent",), "budgets": ("0.2",), "context": 40, "continuation": 24, "protect_first": 2,
    "protect_last": 8, "draws": 1,
}  # fmt: skip
GOOD = tiny_data.documents(2, 64)


def cut(name: str, *segments: Tensor) -> Cut:
    digest = hashlib.sha256(f"{name}{[s.tolist() for s in segments]}".encode()).hexdigest()
    return Cut(Named(name, digest), segments)


def with_id(position: int, token: int) -> Tensor:
    tokens = GOOD[0].segments[0].clone()
    tokens[position] = token
    return tokens


UNFIT = {
    "beyond": (cut("bad", with_id(5, 500)), r"bad: token 5 \(id 500\) is not in .* ids 0 to 96; use the tokenizer"),
    "continuation": (cut("bad", with_id(50, 97)), r"bad: token 50 \(id 97\)"),
    "negative": (cut("bad", with_id(7, -3)), r"bad: token 7 \(id -3\)"),
    "second segment": (cut("bad", GOOD[1].segments[0], with_id(9, 99)), r"bad, segment 1: token 9 \(id 99\)"),
    "short": (cut("bad", GOOD[0].segments[0][:50]), r"bad has 50 tokens, fewer than the 40 \+ 24 asked for"),
    "shorter than the context": (cut("bad", GOOD[0].segments[0][:20]), "bad has 20 tokens"),
    "none": (cut("bad", GOOD[0].segments[0][:0]), r"bad has shape \(0,\)"),
    "two axes": (cut("bad", GOOD[0].segments[0][None]), r"bad has shape \(1, 64\)"),
    "floats": (cut("bad", GOOD[0].segments[0].float()), "float32"),
    "truths": (cut("bad", GOOD[0].segments[0] > 5), "torch.bool"),
    "no segments": (cut("bad"), "bad has no segments"),
}


class Heard:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def begin(self, total_tokens: int, what: str) -> None: ...
    def advance(self, tokens: int, what: str) -> None: ...
    def end(self) -> None: ...
    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_document_is_named_and_the_others_are_measured(case: str, tmp_path: Path) -> None:
    bad, words = UNFIT[case]
    heard, model = Heard(), tiny_data.model()
    run = measure(model, [GOOD[0], bad, GOOD[1]], Request(**WANTED), tmp_path / "run", progress=heard)
    assert re.search(words, heard.messages[0])
    assert heard.messages[-1] == "1 of 3 documents could not be measured: bad"
    alone = measure(model, GOOD, Request(**WANTED), tmp_path / "alone").curves()
    frame = run.curves()
    assert frame["document"].tolist() == alone["document"].tolist()
    for mine, theirs in zip(frame["kl"], alone["kl"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ForwardInfluenceError, match=words) as refused:
        screen_document(model, bad, Request(**WANTED))
    assert not isinstance(refused.value, UsageError)


def test_a_generated_continuation_needs_the_context_alone(tmp_path: Path) -> None:
    short, unread = cut("short", GOOD[0].segments[0][:40]), cut("unread", with_id(50, 97))
    request = Request(**WANTED, continuation_from="generate")
    run = measure(tiny_data.model(), [short, unread], request, tmp_path / "run")
    assert set(run.curves()["document"]) == {"short", "unread"}
    heard = Heard()
    bad = cut("bad", with_id(39, 97))
    measure(tiny_data.model(), [short, bad], request, tmp_path / "other", progress=heard)
    assert heard.messages[-1] == "1 of 2 documents could not be measured: bad"


@pytest.mark.parametrize("token", [97, 10**12, -1])
def test_library_calls_name_the_token(token: int, tmp_path: Path) -> None:
    model, words = tiny_data.model(), rf"token 3 \(id {token}\) is not in the model's vocabulary"
    tokens = with_id(3, token)
    with pytest.raises(ForwardInfluenceError, match=f"the context: {words}"):
        record(model, tokens)
    trace = record(model, GOOD[0].segments[0][:40], span=64)
    selection = Selection(torch.zeros(trace.shape, dtype=torch.bool), trace.layers)
    selection.mask[..., 3:9] = True
    with pytest.raises(ForwardInfluenceError, match=f"the continuation: {words}"):
        forward_influence(model, trace, tokens[:24], selection)
    with pytest.raises(ForwardInfluenceError, match=f"speech: {words}"):
        influence_map(model, tokens, MapRequest(8, 8, 4), tmp_path / "map.parquet", name="speech")
    with pytest.raises(ForwardInfluenceError, match=f"doc: {words}"):
        inspect_document(model, cut("doc", tokens), Request(**WANTED))
    with pytest.raises(UsageError, match="speech is a list"):
        influence_map(model, tokens.tolist(), MapRequest(8, 8, 4), tmp_path / "map.parquet", name="speech")


def test_a_head_with_fewer_rows_than_the_embedding_decides() -> None:
    model = tiny_data.model()
    small = SimpleNamespace(
        get_input_embeddings=model.model.get_input_embeddings, get_output_embeddings=lambda: nn.Linear(32, 90)
    )
    mine = SimpleNamespace(model=small, tokenizer=None, anatomy=model.anatomy)
    require_known(mine, [89], "it")
    with pytest.raises(ForwardInfluenceError, match="ids 0 to 89, and so are 1 more"):
        require_known(mine, [90, 96], "it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with two more entries than the model has rows."""
    path = save_tiny(tmp_path_factory.mktemp("model"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>", "bacon"])
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    words = "the tide turns twice a day and ships wait for it "
    (path / "good.txt").write_text(words * 8)
    (path / "bad.txt").write_text(words[:20] + "<extra> " + words[::-1] * 8)
    return path


SAID = (
    f"token 18 (id {VOCABULARY}, '<extra>') is not in the model's vocabulary, which has the ids 0 to {VOCABULARY - 1};"
)
SMALL = ["--context", "60", "--continuation", "40"]
RULES = ["--selector", "recent", "--budget", "0.2", "--protect-last", "8"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, " ".join(err.split())


def test_measure_goes_on_with_the_rest(capsys, folder: Path, texts: Path, tmp_path: Path) -> None:
    given = ["measure", "--model", folder, "--documents", texts, *SMALL, *RULES, "--out", tmp_path / "run"]
    code, out, err = call(capsys, *given)
    assert code == 1  # as for any document that could not be measured
    assert SAID in err + out and "1 of 2 documents could not be measured" in err + out
    frame = pd.concat(pd.read_parquet(p) for p in (tmp_path / "run").rglob("*.parquet"))
    assert set(frame["document"]) == {"good"}


def test_screen_goes_on_with_the_rest(capsys, folder: Path, texts: Path, tmp_path: Path) -> None:
    given = ["screen", "--model", folder, "--documents", texts, *SMALL, *RULES, "--max-documents", "2"]
    code, out, err = call(capsys, *given, "--out", tmp_path / "found.parquet")
    assert code == 1 and SAID in err + out
    assert set(pd.read_parquet(tmp_path / "found.parquet")["document"]) == {"good"}
    code, _, err = call(capsys, "screen", "--model", folder, "--documents", texts / "bad.txt", *SMALL, *RULES)
    assert code == 1 and "no document could be screened; the first: " in err and SAID in err


@pytest.mark.parametrize("command", ["inspect", "influence-map"])
def test_commands_for_one_document_say_it_in_a_line(
    capsys, folder: Path, texts: Path, tmp_path: Path, command: str
) -> None:
    given = [command, "--model", folder, "--documents", texts / "bad.txt", "--context", "60"]
    given += RULES if command == "inspect" else ["--continuation", "40"]
    code, out, err = call(capsys, *given, "--out", tmp_path / "map.parquet")
    assert (code, out) == (1, "")
    assert "bad: " + SAID in err and "Traceback" not in err


def test_generate_says_it_in_a_line(capsys, folder: Path) -> None:
    code, out, err = call(capsys, "generate", "--model", folder, "the tide <extra> turns", "--max-new-tokens", "4")
    assert (code, out) == (1, "")
    assert f"the prompt: token 7 (id {VOCABULARY}, '<extra>')" in err
    loaded = load_model(str(folder))
    with pytest.raises(ForwardInfluenceError, match="the prompt: token 0"):
        generate(loaded, "<extra>", make_compressor("full"), max_new_tokens=2)


def test_evaluate_goes_on_with_the_rest(capsys, folder: Path, tmp_path: Path) -> None:
    given = ["evaluate", "--task", "needle", "--compressor", "streaming", "--budget", "0.5", "--length", "400"]
    given += ["--protocol", "seen", "--items", "12", "--model", folder, "--format", "csv"]
    code, _, err = call(capsys, *given, "--out", tmp_path / "some")
    assert code == 1
    named = re.findall(r"needle, 400 tokens, item (\d+), question seen: token \d+ \(id 321, 'bacon'\)", err)
    assert 0 < len(set(named)) < 12
    assert f"{len(set(named))} of 12 items could not be answered, the others are kept; the first: needle" in err
    frame = pd.concat(pd.read_parquet(p) for p in (tmp_path / "some" / "parts").glob("*.parquet"))
    assert set(frame["item"]) == set(range(12)) - set(map(int, named))
    code, _, again = call(capsys, *given, "--out", tmp_path / "some")
    assert code == 1 and f"{len(set(named))} of {len(set(named))} items could not be answered" in again


def test_a_model_in_memory_needs_no_tokenizer_to_say_it() -> None:
    with pytest.raises(ForwardInfluenceError, match=r"token 1 \(id 400\)"):
        record(wrap_model(tiny_llama()), torch.tensor([5, 400, 6]))
