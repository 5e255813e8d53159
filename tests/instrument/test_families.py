"""Every model family of the installed transformers: equal to brute force, or refused with a reason. Never wrong."""

from __future__ import annotations

import re

import brute_force
import pytest
import torch
import transformers
from families import names, tiny_config, tiny_family
from family_table import PROVEN, REFUSED, TOLERANCE, UNBUILT, N, read_table, verdict
from family_table import TABLE as TABLE_FILE
from packaging.version import Version
from released_layouts import family
from test_cli import call
from tiny_files import VOCABULARY, tiny_tokenizer

from forward_influence.influence.measure import forward_influence
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

VERSION, TABLE = read_table()

#: |KL in 16 bits - KL in float32|, of the same (rounded) weights: at most this much, plus this part of the KL.
NARROW = {torch.bfloat16: (0.05, 0.15), torch.float16: (0.01, 0.03)}


def _words(remark: str) -> str:
    """A remark without the numbers in it, which rounding decides."""
    return re.sub(r"[0-9][0-9.e+-]*", "#", remark.replace("|", "/"))


@pytest.mark.parametrize("name", names())
def test_equal_to_brute_force_or_refused(name):
    found = verdict(name)
    assert found.difference <= TOLERANCE, "accepted and wrong"
    if transformers.__version__ == VERSION:
        state, remark = TABLE[name]
        if state != UNBUILT:  # what could not be built may be buildable where more is installed
            assert (found.state, _words(found.remark)) == (state, _words(remark)), "run `make models-table`"
    else:  # an older version may have no attention interface where the newest has one, and other layers
        assert found.remark or found.state == PROVEN, "refused without a reason"


def test_at_least_148_families_are_proven_and_every_other_has_its_reason():
    proven = {family(name) for name, (state, _) in TABLE.items() if state == PROVEN}
    assert len(proven) >= 148
    assert all(remark for state, remark in TABLE.values() if state != PROVEN)
    if transformers.__version__ == VERSION:
        assert sorted(TABLE) == names()


def test_every_model_that_the_page_names_first_has_its_proof_below():
    front, _, _ = TABLE_FILE.read_text("utf-8").partition("## Every family")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in front.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 8
    for models, kinds, what in rows:
        for kind in kinds.split(", "):
            assert TABLE[kind][0] == (REFUSED if what.startswith("refused") else PROVEN), (models, kind)


def test_the_page_is_of_the_locked_version_and_not_older_than_the_installed_one():
    """Older ones are what `make test-matrix` installs; a newer one needs `make models-table` and `make lock`."""
    lock = (TABLE_FILE.parents[1] / "constraints.txt").read_text("utf-8")
    assert f"transformers=={VERSION}" in lock.splitlines(), "run `make models-table`"
    assert Version(transformers.__version__) <= Version(VERSION), "run `make models-table`"


@pytest.mark.parametrize("dtype", list(NARROW), ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_oss", "gpt_neox", "olmo2", "gemma2", "mixtral"])
def test_sixteen_bits_stay_near_float32(name, dtype):
    narrow = tiny_family(name, dtype)
    wide = tiny_family(name, dtype).float()  # the same rounded weights
    absolute, relative = NARROW[dtype]
    tokens = torch.randint(3, 97, (N + 23,), generator=torch.Generator().manual_seed(5))
    results = []
    for raw in (narrow, wide):
        model = wrap_model(raw)
        trace = record(model, tokens[:N], span=len(tokens), chunk=13)
        mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
        results += forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers), chunk=9)
    found, wanted = (result.kl.double() for result in results)
    assert float(wanted.max()) > 0.1
    assert ((found - wanted).abs() <= absolute + relative * wanted).all(), float((found - wanted).abs().max())


def test_brute_force_is_not_blind_to_a_wrong_layer():
    """The judge judges: removing from another layer than the engine does is seen at once."""
    model = wrap_model(tiny_family("llama"))
    tokens = torch.randint(3, 97, (N + 5,), generator=torch.Generator().manual_seed(5))
    trace = record(model, tokens[:N], span=len(tokens))
    mask = torch.zeros(trace.shape, dtype=torch.bool)
    mask[0, :, 5:20] = True
    [found] = forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers))
    elsewhere, _, _ = brute_force.influence(model.model, tokens, N, {1: mask[0]})
    assert float((found.kl - elsewhere).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["bloom", "minimax_m3_vl_text", "mamba"])
def test_the_command_line_repeats_why_a_family_is_refused(capsys, tmp_path, name):
    """No attention interface, a cache of its own, states alone."""
    raw = tiny_family(name, torch.float32)
    raw.resize_token_embeddings(VOCABULARY)
    raw.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("some words " * 40)
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8"]
    where = ["--model", tmp_path / "model", "--documents", tmp_path / "text.txt", "--out", tmp_path / "run"]
    found = verdict(name)
    code, _, err = call(capsys, "measure", *where, *sizes, "--selector", "recent")
    if transformers.__version__ == VERSION:
        assert (found.state, _words(found.remark)) == (REFUSED, _words(TABLE[name][1]))
    assert code == (2 if found.state == REFUSED else 0)
    assert found.state == PROVEN or _words(found.remark) in _words(err)
    assert (tmp_path / "run").exists() == (found.state == PROVEN)


def test_logit_scaling_is_not_one_where_it_is_tested():
    assert tiny_config("granite").logits_scaling == 8
    assert tiny_config("cohere").logit_scale == 0.0625
