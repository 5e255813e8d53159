"""Runs what CONTRIBUTING's examples add; the last line of its output is JSON. `test_contributing.py` runs it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

RULE = '''
from forward_influence.selectors import selector
SEEN = []
@selector("recurrent", needs={"recurrence:12"})
def recurrent(trace):
    """Tokens that stood there a moment ago."""
    SEEN.append((trace.tokens.tolist(), trace.signal("recurrence:12").tolist()))
    return trace.signal("recurrence:12")
'''


def command(*arguments: object) -> str:
    """What a command prints where it succeeds."""
    from forward_influence.cli import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app.main([str(a) for a in arguments])
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"{arguments}: {err.getvalue()}") from None
    return out.getvalue()


def measured(place: Path, *more: object) -> tuple:
    """A run of both texts."""
    from forward_influence.storage.run import open_run

    out = place / f"run-{len(list(place.iterdir()))}"
    given = ["--model", place / "model", "--documents", place / "texts", "--device", "cpu", "--trace-cache", "0"]
    given += ["--context", 60, "--continuation", 40, "--protect-last", 8, "--draws", 1]
    command("measure", *given, "--out", out, *more)
    run = open_run(out)
    return run, [part for part in (run.part(document["part"]) for document in run.documents) if part is not None]


def rules(place: Path) -> dict:
    """The rule and the signal, against counts by hand."""
    import torch
    from tiny_data import model

    import forward_influence as fi

    tokens = torch.tensor([5, 7, 5, 5, 9, 7, 5, 11, 12, 9] * 3)
    trace = fi.record(model(), tokens, span=40)
    counts = Counter(tokens.tolist())
    (place / "rules.py").write_text(RULE)
    measured(place, "--selector", place / "rules.py:recurrent", "--selector", "repeats:power=-1")
    from forward_influence.selectors.rule_files import load_file

    seen, found = load_file(place / "rules.py").SEEN[0]
    return {
        "repeats": fi.parse_selector("repeats:power=-1").scores(trace).tolist(),
        "repeats_by_hand": [1 / counts[token] for token in tokens.tolist()],
        "recurrence": found,
        "recurrence_by_hand": [seen[max(0, i - 12) : i].count(token) for i, token in enumerate(seen)],
    }


def effect(place: Path) -> dict:
    """The effect, checked by masking."""
    run, parts = measured(place, "--selector", "repeats", "--effect", "halved", "--verify")
    kinds = {row["effect"] for part in parts for row in part.rows if row["kind"] == "condition"}
    checked = [json.loads(run.timings_path(document["part"]).read_text())["verified"] for document in run.documents]
    return {
        "effects": sorted(kinds),
        "verified": [one["of_what_rounding_explains"] for some in checked for one in some],
    }


def tables(place: Path) -> dict:
    """The measure and the picture."""
    import numpy as np

    from forward_influence.analysis.reading.curves import read_curves

    run, _ = measured(place, "--selector", "repeats", "--selector", "random")
    rows = json.loads(command("compare", run.where, "--show", "variation", "--format", "json"))["variation"]
    logs = read_curves([run]).zones.query("kl > 0").assign(log=lambda frame: np.log(frame["kl"]))
    by_hand = {key: np.exp(part["log"].std()) for key, part in logs.groupby(["selector", "zone"])}
    picture = place / "variation.svg"
    command("plot", run.where, "--kind", "variation", "--out", picture)
    command("report", run.where, "--out", place / "report.html")
    return {
        "variation": [row["factor"] for row in rows],
        "variation_by_hand": [float(by_hand[row["selector"], row["zone"]]) for row in rows],
        "terminal": " ".join(command("compare", run.where, "--show", "variation").split()),
        "picture": "written" if picture.stat().st_size > 1000 else "empty",
        "report": (place / "report.html").read_text("utf-8"),
    }


def executor(place: Path) -> dict:
    """The same run in this process and in another."""
    found = {}
    for name, how in (("here", []), ("there", ["--executor", "processes", "--workers", 1])):
        _, parts = measured(place, "--selector", "repeats", "--selector", "random", *how)
        found[name] = [row["kl"].tolist() for part in parts for row in part.rows if row["kind"] == "condition"]
    return found


def option() -> dict:
    """Which commands have it, and where it arrives."""
    from forward_influence.cli.app import group
    from forward_influence.models.recipe import Recipe

    having = [n for n, one in group().commands.items() if any("--max-memory" in p.opts for p in one.params)]
    with mock.patch("forward_influence.models.loading.load_model") as loading:
        Recipe(device_map="auto", max_memory="0=40GB,cpu=90GB").loaded(mock.Mock())
    given = loading.call_args.kwargs["max_memory"]
    return {"has_option": sorted(having), "max_memory": {str(device): most for device, most in given.items()}}


def main() -> None:
    import tempfile

    import tiny_files

    import forward_influence

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny_files.save_tiny(place / "model")
        (place / "texts").mkdir()
        for i in range(2):
            (place / "texts" / f"{i}.txt").write_text(" ".join(f"word{(i + 7) * j * j % 11}" for j in range(400)))
        found = {**rules(place), **effect(place), **tables(place), **executor(place), **option()}
    found["package"] = forward_influence.__file__
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
