"""Whatever decides results decides the key of everything that is kept: no old result is taken for another model's."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import brute_force
import pytest
import torch
from test_cli import call
from tiny_files import save_tiny, tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM

from forward_influence.analysis.reading.comparable import differences
from forward_influence.compression.session import anatomy_of
from forward_influence.errors import UsageError
from forward_influence.models.fingerprint import configuration_of, fingerprint, mark
from forward_influence.models.loading import load_model, wrap_model
from forward_influence.storage.run import configuration_hash, open_run
from forward_influence.tracing.recorder import record

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
SIZES = ["--context", 96, "--continuation", 40, "--protect-last", 16, "--selector", "entropy"]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the tide and the cat, 12 of them. " * 30)
    save_tiny(tmp_path / "model")
    return tmp_path


def change(folder: Path, **settings) -> None:
    """Settings in a model's config.json, weights as they were."""
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def measure(folder: Path, capsys, out: str, *more) -> tuple[int, str]:
    code, _, err = call(
        capsys,
        "measure",
        "--model",
        folder / "model",
        "--documents",
        folder / "texts",
        *SIZES,
        "--out",
        folder / out,
        *more,
    )
    return code, err


def kl_of(run) -> torch.Tensor:
    return torch.tensor(run.curves().query("kind == 'condition'")["kl"].iloc[0])


def test_yarn_switched_on_is_another_model_for_the_trace_cache(folder, capsys, monkeypatch):
    """The figures are those of brute force on the model as it is now, whatever was kept of the one before."""
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(folder / "cache"))
    assert measure(folder, capsys, "before")[0] == 0
    change(folder, rope_parameters=YARN)
    assert measure(folder, capsys, "after")[0] == 0
    assert len(list((folder / "cache" / "traces").glob("*.safetensors"))) == 4  # two traces, two full runs
    model = load_model(str(folder / "model"), device="cpu", dtype="float64")
    assert measure(folder, capsys, "alone", "--trace-cache", 0, "--save-selections")[0] == 0
    after, alone = open_run(folder / "after"), open_run(folder / "alone")
    assert torch.equal(kl_of(after), kl_of(alone))
    from safetensors.torch import load_file

    saved = load_file(alone.selections_path(alone.documents[0]["part"]))
    mask = next(t for name, t in saved.items() if name.startswith("selection/"))
    tokens = torch.cat([saved["tokens/0"], saved["continuation/0"]])
    removed = {layer: mask[i] for i, layer in enumerate(model.anatomy.full_layers(136))}
    wanted, _, _ = brute_force.influence(model.model, tokens, 96, removed)
    torch.testing.assert_close(kl_of(after).double(), wanted, atol=1e-5, rtol=1e-3)
    assert float((kl_of(after) - kl_of(open_run(folder / "before"))).abs().max()) > 0.01


def test_a_run_of_another_configuration_is_not_continued_and_the_field_is_named(folder, capsys):
    assert measure(folder, capsys, "run")[0] == 0
    change(folder, rope_parameters=YARN)
    code, err = measure(folder, capsys, "run")
    assert code == 2
    assert 'model_configuration.rope_parameters.rope_type: "default" there, "yarn" now' in err
    assert "model_fingerprint" not in err
    change(folder, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    code, err = measure(folder, capsys, "run")
    assert code == 2 and "model_configuration.rms_norm_eps: 1e-06 there, 0.001 now" in err


def test_runs_of_one_name_and_other_settings_are_told_apart(folder, capsys):
    assert measure(folder, capsys, "one")[0] == 0
    change(folder, hidden_act="gelu")
    assert measure(folder, capsys, "two")[0] == 0
    [found] = differences(open_run(folder / "one"), open_run(folder / "two"))
    assert 'model.hidden_act: "silu" there, "gelu" now' in found
    shutil.rmtree(folder / "two")
    change(folder, hidden_act="silu")
    assert measure(folder, capsys, "two")[0] == 0
    assert differences(open_run(folder / "one"), open_run(folder / "two")) == []


def test_an_influence_map_and_an_evaluation_are_of_one_configuration(folder, capsys):
    small = ["--model", folder / "model", "--documents", folder / "texts", "--context", 12, "--continuation", 12]
    task = ["--task", "needle", "--length", 400, "--items", 1, "--compressor", "recent", "--budget", 0.5]
    commands = [
        ("influence-map", *small, "--out", folder / "map.parquet"),
        ("evaluate", "--model", folder / "model", *task, "--no-chat", "--out", folder / "evaluation"),
    ]
    for command in commands:
        assert call(capsys, *command)[0] == 0
        change(folder, rope_parameters=YARN)
        code, _, err = call(capsys, *command)
        assert code == 2 and 'rope_parameters.rope_type: "default" there, "yarn" now' in err
        change(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
        assert call(capsys, *command)[0] == 0


class Adapted(nn.Linear):
    """A linear layer with an adapter that can be switched, as adapter libraries put in the place of a model's own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = base.weight
        self.low = nn.Parameter(torch.ones(1, base.in_features) * 0.1, requires_grad=False)
        self.high = nn.Parameter(torch.ones(base.out_features, 1) * 0.1, requires_grad=False)
        self.disabled, self.scaling = False, {"default": 1.0}

    def forward(self, hidden):
        own = super().forward(hidden)
        return own if self.disabled else own + hidden @ self.low.T @ self.high.T * self.scaling["default"]


def _adapted():
    model = AutoModelForCausalLM.from_config(copy.deepcopy(tiny_llama().config))
    model.load_state_dict(tiny_llama().state_dict())
    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    return model.eval(), attention.q_proj


CHANGES = {
    "switched off": lambda model, layer: setattr(layer, "disabled", True),
    "scaled": lambda model, layer: layer.scaling.update(default=0.5),
    "merged": lambda model, layer: layer.weight.data.add_(layer.high @ layer.low),
    "other epsilon": lambda model, layer: setattr(model.model.norm, "variance_epsilon", 1e-2),
    "other rotary frequencies": lambda model, layer: model.model.rotary_emb.inv_freq.mul_(0.5),
    "other activation": lambda model, layer: setattr(model.model.layers[1].mlp, "act_fn", nn.GELU()),
    "quantised": lambda model, layer: setattr(model.config, "quantization_config", {"bits": 4}),
    "another setting": lambda model, layer: setattr(model.config, "attention_dropout", 0.5),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_a_checkpoint_does_not_hold_is_in_the_fingerprint_too(name):
    model, layer = _adapted()
    before, marked = fingerprint(model).whole, mark(model)
    with torch.no_grad():
        CHANGES[name](model, layer)
    assert fingerprint(model).whole != before
    if "rotary" not in name:  # buffers change while some models run; they are looked at when a model is wrapped
        assert mark(model) != marked


@pytest.mark.parametrize("name", [name for name in CHANGES if "rotary" not in name])
def test_a_model_that_was_changed_since_it_was_wrapped_is_refused(name):
    model, layer = _adapted()
    wrapped, tokens = wrap_model(model), torch.arange(3, 40)
    anatomy = anatomy_of(model)
    record(wrapped, tokens)
    assert anatomy_of(model) is anatomy
    with torch.no_grad():
        CHANGES[name](model, layer)
    with pytest.raises(UsageError, match=r"was changed since it was loaded .*wrap it anew with wrap_model"):
        record(wrapped, tokens)
    assert anatomy_of(model) is not anatomy
    record(wrap_model(model), tokens)


def test_an_adapter_that_is_on_is_measured_on():
    model, layer = _adapted()
    tokens = torch.arange(3, 60)
    on = wrap_model(model)
    with_adapter = record(on, tokens).last_hidden
    layer.disabled = True
    off = wrap_model(model)
    without = record(off, tokens).last_hidden
    assert on.fingerprint != off.fingerprint
    plain = record(wrap_model(tiny_llama()), tokens).last_hidden
    assert torch.equal(without, plain)
    assert not torch.equal(with_adapter, plain)


def test_using_a_model_and_loading_it_again_change_nothing(folder):
    one, other = (load_model(str(folder / "model"), device="cpu") for _ in range(2))
    assert one.fingerprint == other.fingerprint
    one.model(torch.arange(60)[None])
    one.model.generate(torch.arange(3, 9)[None], max_new_tokens=4)
    record(one, torch.arange(3, 60))
    assert fingerprint(one.model).whole == other.fingerprint
    again = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    assert wrap_model(again).fingerprint == other.fingerprint
    assert "transformers_version" not in configuration_of(again)


def test_code_that_comes_with_a_model_is_in_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for word in ("one", "two"):
        (tmp_path / f"remote_{word}.py").write_text(
            f"from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    word = {word!r}\n"
        )
        module = __import__(f"remote_{word}")
        module.Own.__module__ = "remote"  # the same class by name, from another file
        monkeypatch.setitem(__import__("sys").modules, "remote", module)
        model = module.Own(tiny_llama().config)
        model.load_state_dict(tiny_llama().state_dict())
        found.append(fingerprint(model).whole)
    assert found[0] != found[1]


def test_a_run_goes_on_under_other_versions_whose_settings_have_other_names(folder, capsys, monkeypatch):
    """Weights and the settings that both versions know must agree; it says so."""
    (folder / "texts" / "b.txt").write_text("north of it the tide was gone, then a cat. " * 30)
    assert measure(folder, capsys, "run", "--max-documents", 2)[0] == 0
    run = open_run(folder / "run")
    run.part_path(run.documents[0]["part"]).unlink()
    measured = {"older": lambda m: m["versions"].update(transformers="5.0.0")}

    def edit(change) -> None:
        path = folder / "run" / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        manifest["configuration_hash"] = configuration_hash(manifest["configuration"])
        path.write_text(json.dumps(manifest))

    def renamed(manifest) -> None:
        manifest["configuration"]["model_fingerprint"] = "0" * 64
        manifest["configuration"]["model_configuration"].pop("mlp_bias")
        measured["older"](manifest)

    edit(renamed)
    for part in (folder / "run" / "parts").iterdir():
        part.unlink()
    (folder / "run" / "parts" / "left.parquet").write_bytes(b"not empty")
    code, err = measure(folder, capsys, "run", "--max-documents", 2)
    assert code == 0, err
    edit(lambda m: m["configuration"].update(model_weights="1" * 64))
    code, err = measure(folder, capsys, "run", "--max-documents", 2)
    assert code == 2 and "model_weights" in err
