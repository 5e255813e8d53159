"""Mutated input for the parsers, for a fixed time: `make fuzz`.

python benchmarks/fuzz.py [SECONDS] [SEED]

With atheris (coverage of the parsers guides the mutations) where it is installed, else with seeded random mutations.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hostile

from forward_influence.storage.run import SCHEMA_VERSION

_SEEDS = [
    *(text.encode("utf-8", "surrogatepass") for text in hostile.STRINGS if len(text) < 1000),
    b"attention:window=32,kernel=7,pooling=max,per=layer",
    b"position-matched:of=attention",
    b'{"schema": %d, "configuration_hash": "x", "configuration": {}, "documents": [{"name": "d", "part": "d-1"}]}'
    % SCHEMA_VERSION,
]


def one_input(data: bytes, folder: Path) -> None:
    """Give one input to every parser; an error that is not one line of ours is raised."""
    text = data.decode("utf-8", "replace")
    for read in (hostile.selector, hostile.budget):
        assert hostile.taken_well(read, text), (read.__name__, text)
    assert hostile.taken_well(hostile.manifest, data, folder), ("manifest", data)
    assert hostile.taken_well(hostile.part, data, folder), ("part", data)


def mutated(generator: random.Random) -> bytes:
    """A seed, or two spliced, with some bytes changed, removed or doubled."""
    data = bytearray(generator.choice(_SEEDS) + (generator.choice(_SEEDS) if generator.random() < 0.3 else b""))
    for _ in range(generator.randrange(6)):
        at = generator.randrange(len(data) + 1)
        action = generator.randrange(3)
        if action == 0:
            data[at:at] = bytes([generator.randrange(256)])
        elif action == 1:
            del data[at : at + generator.randrange(4)]
        else:
            data[at:at] = data[at : at + generator.randrange(16)]
    return bytes(data)


def guided(seconds: float, seed: int) -> None:
    """Let atheris choose the mutations by what they reach in the parsers; it ends the process when the time is over."""
    import atheris

    for module in ("selectors.registry", "selection", "manifests", "parts", "errors"):
        for name, made in vars(sys.modules[f"forward_influence.{module}"]).items():
            if callable(made) and getattr(made, "__code__", None) is not None and not name.startswith("__"):
                setattr(sys.modules[f"forward_influence.{module}"], name, atheris.instrument_func(made))
    folder = Path(tempfile.mkdtemp())
    (folder / "seeds").mkdir()
    for i, data in enumerate(_SEEDS):
        (folder / "seeds" / str(i)).write_bytes(data)
    options = [f"-max_total_time={seconds:.0f}", f"-seed={seed or 1}", "-timeout=10", "-max_len=4096", "-verbosity=0"]
    atheris.Setup(
        [sys.argv[0], *options, "-print_final_stats=1", str(folder / "seeds")], partial(_guided_input, folder)
    )
    atheris.Fuzz()


def _guided_input(folder: Path, data: bytes) -> None:
    one_input(data, folder / "run")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if importlib.util.find_spec("atheris") is not None:
        guided(seconds, seed)
        return
    generator = random.Random(seed)
    tried, slowest, end = 0, 0.0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = mutated(generator)
            begun = time.monotonic()
            one_input(data, Path(folder))
            slowest = max(slowest, time.monotonic() - begun)
            tried += 1
    print(f"{tried} inputs in {seconds:.0f} s, the slowest {slowest * 1000:.0f} ms; every one taken well")


if __name__ == "__main__":
    main()
