"""The structure of the code in numbers: levels of imports, circles, modules per folder, lines, what stands twice.

    python benchmarks/structure.py [FOLDER]     of this working tree, or of another one

Imports are those that run, within functions too; those for type checkers alone (`if TYPE_CHECKING`) are left out, and
so is the package's root, whose public names are looked up at first use.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "forward_influence"
PARTS = ("forward_influence", "cli", "analysis", "data")
#: So many lines in a row, comments, blank lines and imports left out, that stand in two places are a pair.
WINDOW = 5


def modules(root: Path) -> dict[str, Path]:
    """Full name -> file; `cli`, `analysis` and `data` are parts of the package, as in the wheel."""
    found = {}
    for part in PARTS:
        for path in sorted((root / part).rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            names = names if part == PACKAGE else (PACKAGE, *names)
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def imports(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Our modules that a module imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module
        else:
            yield from imports(node, known)


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports, the root left out."""
    found = {}
    for name, path in known.items():
        of = set(imports(ast.parse(path.read_text("utf-8")), known))
        found[name] = of - {name, PACKAGE}
    return found


def levels(of: dict[str, set[str]]) -> tuple[int, list[list[str]]]:
    """The longest chain of imports in modules, and circles, each cut where it was found."""
    of, circles = {name: set(those) for name, those in of.items()}, []
    while True:
        try:
            order = list(TopologicalSorter(of).static_order())
            break
        except CycleError as error:
            circle = list(error.args[1])
            circles.append(circle)
            of[circle[1]].discard(circle[0])
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[other] for other in of[name]), default=0)
    return max(depth.values()), circles


def public_names(path: Path) -> Iterator[str]:
    """Functions, classes and constants that a module defines and does not hide."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def twice(known: dict[str, Path]) -> list[str]:
    """Public names that two modules or more define."""
    homes = Counter(name for path in known.values() for name in set(public_names(path)) if not name.startswith("_"))
    return sorted(name for name, number in homes.items() if number > 1)


def duplicated(known: dict[str, Path]) -> int:
    """How many pairs of `WINDOW` lines in a row are the same but for indentation."""
    seen: Counter[tuple[str, ...]] = Counter()
    for path in known.values():
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        code = [line for line in lines if line and not line.startswith(("#", "from ", "import ", '"""'))]
        seen.update(tuple(code[i : i + WINDOW]) for i in range(len(code) - WINDOW + 1))
    return sum(number * (number - 1) // 2 for number in seen.values())


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    known = modules(root)
    depth, circles = levels(graph(known))
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in known.items()}
    folders: dict[str, list[str]] = defaultdict(list)
    for name, path in known.items():
        folders[path.parent.relative_to(root).as_posix()].append(name)
    most = max(folders, key=lambda folder: len(folders[folder]))
    print(f"modules: {len(known)} in {len(folders)} folders, at most {len(folders[most])} in one ({most})")
    print(f"levels of imports: {depth}; circles: {len(circles)}")
    for circle in circles:
        print(f"    {' -> '.join(circle)}")
    print(f"lines: {sum(lines.values()):,}; longest file: {max(lines.values())} ({max(lines, key=lambda n: lines[n])})")
    print(f"pairs of {WINDOW} lines that are the same: {duplicated(known)}")
    names = twice(known)
    print(f"public names that two modules define: {len(names)}\n    {', '.join(names)}")
    for folder, those in sorted(folders.items()):
        print(f"    {folder:45} {len(those):3} modules {sum(lines[name] for name in those):6,} lines")


if __name__ == "__main__":
    main()
