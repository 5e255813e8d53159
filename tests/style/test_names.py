"""One place for each thing: a public name stands in one module, or in two that rightly have one each."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("forward_influence", "analysis", "cli", "data")

#: Names that are rightly two things or more, and which.
TWO_THINGS = {
    "Asked": "the documents of a command; what a request of the harness asks for",
    "Choice": "what a condition selects while it is measured; what is read of it again",
    "Choices": "of a measurement; what rules chose of a context",
    "Entropy": "a rule; the signal that it reads",
    "Found": "what a condition gave; a file of the hub",
    "GRAINS": "of what a rule chooses; of how finely a page keeps ranks",
    "KINDS": "of a part's rows; of what `cur` multiplies",
    "Kind": "of pictures; of intervals",
    "Layout": "how an evaluation is shown; how a document is measured by its spans",
    "Part": "a document's results; a run of layers and heads that hold as many entries",
    "Plan": "what to evaluate; what a run will cost",
    "Prepared": "documents, cut; a document's conditions",
    "RESAMPLES": "of our own bootstrap; of scipy's, whose intervals would change",
    "Reading": "which runs a command reads; a rotation, as it was found",
    "Recorder": "what an instrument reports to; the one that records signals",
    "Run": "a stored run; the same, which shows itself in Python",
    "SCHEMA": "of a run's parts; of an evaluation's",
    "SCHEMA_VERSION": "of a run; of an evaluation",
    "Setting": "an option's; what a signal is recorded in",
    "Steps": "how tokens follow a cache; when entries were attended to",
    "Surprisal": "a rule; the signal that it reads",
    "Table": "a part of a report; how an evaluation is shown",
    "Task": "one backward pass; how a run's documents are measured; a family of problems",
    "backward_passes": "run; counted for the memory formula",
    "build_manifest": "of a run; of an evaluation",
    "check_lengths": "of an evaluation's prompts; a model whose rotation depends on the length",
    "create_or_continue": "a run; an evaluation",
    "cut": "a document to tokens; a prompt into its three parts",
    "default_folder": "of a run; of an evaluation",
    "described": "a condition in a row; generation settings in a manifest",
    "differences": "between two manifests; between two runs that are compared",
    "draw": "every kind of picture has one, and one calls them",
    "end_tokens": "of a checkpoint's settings; of an answer, the tokenizer's too",
    "entries": "in words; in numbers",
    "fits": "a turn to a head; a table to a terminal",
    "groups": "of layers that hold alike; of runs that can be compared",
    "guarded": "a model's `generate`; a rule's own code",
    "load_tokenizer": "of a GGUF file; of any model",
    "make": "every place where documents are measured has one",
    "main": "of the command line; of the harness's",
    "measure": "a run; the same with a bar, as a run that shows itself",
    "number": "as text; as a cell of a report",
    "open_run": "a stored run; the same, which shows itself in Python",
    "part_stem": "of a document; of an item",
    "prepare": "threads; documents",
    "read": "curves of runs; documents of a specification",
    "readable": "the tables of `compare`; the table of `summary`",
    "register": "an effect; our model in the harness; a signal",
    "spread": "an estimate as columns; as a cell of a report; facts over a text",
    "words": "of a text; a cell of a report",
}


def defined(path: Path) -> set[str]:
    """Public names that a module defines at its top level: classes, functions, constants."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def in_two_modules() -> dict[str, list[str]]:
    """Public name -> the modules that define it, of those that several do."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        for name in defined(path):
            homes[name].append(str(path.relative_to(ROOT)))
    return {name: paths for name, paths in sorted(homes.items()) if len(paths) > 1}


def test_a_public_name_is_one_thing() -> None:
    unknown = {name: paths for name, paths in in_two_modules().items() if name not in TWO_THINGS}
    assert not unknown, "one thing in two modules is defined once and imported; two things have two names, or a reason"


def test_every_reason_is_needed() -> None:
    assert TWO_THINGS.keys() - in_two_modules().keys() == set()


def test_top_level_definitions_are_found(tmp_path: Path) -> None:
    text = "import os\nA, (B, _c) = 1, (2, 3)\nD: int = 4\nclass E: f = 1\ndef g(): h = 1\nasync def i(): ...\n"
    (tmp_path / "m.py").write_text(text)
    assert defined(tmp_path / "m.py") == {"A", "B", "D", "E", "g", "i"}


if __name__ == "__main__":
    for name, paths in in_two_modules().items():
        print(f"{name:20} {len(paths)}  {', '.join(paths)}")
