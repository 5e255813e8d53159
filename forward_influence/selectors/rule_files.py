"""Rule files: loaded because they were named, again once they have changed, with the modules that lie beside them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.utils.files import sha256

#: Modules that lie beside a rule file and were imported by it, by name. Another file may have others so called.
_siblings: dict[str, ModuleType] = {}


def load_file(path: Path) -> ModuleType:
    """A rule file as a module; it imports what lies beside it, as a script does.

    Raises:
        UsageError: no such file, or one that raises, with its line.
    """
    if not path.is_file():
        raise UsageError(f"rule file {path} does not exist")
    content = path.resolve()
    name = f"forward_influence_rules_{sha256(str(content))[:12]}"
    known = sys.modules.get(name)
    if known is not None and vars(known).get("_read") == _stamps([content, *vars(known).get("_beside", [])]):
        return known
    spec = importlib.util.spec_from_file_location(name, content)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _beside(content.parent) as siblings:
            spec.loader.exec_module(module)
    except ForwardInfluenceError as error:
        del sys.modules[name]
        raise type(error)(f"{error} ({path}, line {_last_line(error, str(content))})") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = _last_line(error, str(content)) or getattr(error, "lineno", None)
        text = next(iter(str(error).splitlines()), "")
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {text} (line {line})") from error
    vars(module)["_beside"] = siblings
    vars(module)["_read"] = _stamps([content, *siblings])
    return module


def source_of(made: Any) -> bytes:
    """The file of a rule's class or function and those beside it that it imports; compiled code where there is none.

    Args:
        made: a class or function; one made in a notebook's cell has no file.
    """
    try:
        files = [Path(inspect.getsourcefile(made) or ""), *vars(sys.modules[made.__module__]).get("_beside", [])]
        return b"".join(file.read_bytes() for file in files)
    except (OSError, TypeError, KeyError):
        code = getattr(getattr(made, "scores", made), "__code__", None)
        return b"" if code is None else code.co_code + repr(code.co_consts).encode()


@contextmanager
def _beside(folder: Path) -> Iterator[list[Path]]:
    """Let modules be imported from a folder; their files are in the list afterwards."""
    for name, module in _siblings.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _siblings.clear()
    before, files = set(sys.modules), list[Path]()
    sys.path.insert(0, str(folder))
    try:
        yield files
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            top = name.partition(".")[0]
            file = Path(getattr(sys.modules[name], "__file__", None) or "")
            if top not in before and (file == folder / f"{top}.py" or folder / top in file.parents):
                _siblings[name] = sys.modules[name]
                files.append(file)
        files.sort()


def _stamps(files: list[Path]) -> list[tuple[str, int]]:
    """Each file's time of change; 0 for one that is gone."""
    return [(str(file), file.stat().st_mtime_ns if file.exists() else 0) for file in files]


def _last_line(error: BaseException, file: str) -> int:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
