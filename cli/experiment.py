"""`--config experiment.yaml`: the options of a command in a file, read and written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from forward_influence.errors import UsageError, did_you_mean, steering
from forward_influence.utils.configuration import GROUPS, Configuration, options_of
from forward_influence.utils.files import typed_file

if TYPE_CHECKING:
    from forward_influence.cli.options import Setting

_UNSET = ("", "~", "null")
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")


def read_experiment(path: Path, settings: Iterable[Setting]) -> dict[str, Any]:
    """Field -> what stands in the file for it, as typer would give it.

    Every value is read as the text that it is written with (0.20 stays that), as on a command line.

    Args:
        path: keys are the names of fields or of options.

    Raises:
        UsageError: no readable YAML, a key that is no option or stands there twice, or a value of another kind.
    """
    known = {name: s for s in settings for name in {s.name, s.said.typed or s.name}}
    found: dict[str, Any] = {}
    for key, value in _pairs(path):
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: {key!r} is no option here{did_you_mean(name, known)}; leave it out")
        setting = known[name]
        if setting.name in found:
            raise UsageError(f"{path}: {key!r} is said twice; say it once")
        if isinstance(value, str) and value.lower() in _UNSET:
            continue
        found[setting.name] = _value(f"{path}: {key}", value, setting)
    return found


def _pairs(path: Path) -> list[tuple[str, Any]]:
    """Keys and values in order, keys that stand there twice among them; values are texts, lists or mappings."""
    import yaml

    data = typed_file(path, "a configuration", "--config takes a YAML file of options")
    loader = None
    try:
        loader = yaml.BaseLoader(data)  # texts, lists and mappings only: it makes no other objects
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{path} is no list of options; write one a line, `context: 1024` say")
        pairs = [(loader.construct_object(key), loader.construct_object(value, deep=True)) for key, value in node.value]
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UsageError(f"{path} is no readable YAML ({where}{reason}); write one option a line") from error
    finally:
        if loader is not None:
            loader.dispose()
    for key, _ in pairs:
        if not isinstance(key, str):
            raise UsageError(f"{path} has a key that is no name; write one option a line, `context: 1024` say")
    return pairs


def _value(where: str, value: Any, setting: Setting) -> Any:
    """What typer would give for a text or a list of texts."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise UsageError(f"{where} holds more than texts and numbers; write a value or a list of them")
        if character := steering(item):
            raise UsageError(f"{where} holds the control character {character}; write it without")
    if get_origin(setting.kind) is list:
        [kind] = get_args(setting.kind)
        return [_one(where, item, kind) for item in items]
    if isinstance(value, list):
        if setting.said.read is None:
            raise UsageError(f"{where} is a list; give one value")
        return ",".join(items)
    return _one(where, value, setting.kind)


def _one(where: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in (*_YES, *_NO):
            raise UsageError(f"{where} is {text!r}; give true or false")
        return text.lower() in _YES
    try:
        made = kind(text)
    except ValueError:
        made = math.nan
    if isinstance(made, float) and math.isnan(made):
        if isinstance(kind, type) and issubclass(kind, Enum):
            raise UsageError(f"{where} is {text!r}; give one of {', '.join(str(one.value) for one in kind)}")
        raise UsageError(f"{where} is {text!r}; give a {'whole ' if kind is int else ''}number")
    return made


def written(*configurations: Configuration) -> str:
    """The YAML of which `read_experiment` makes these again, by groups; what is None is left out."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for configuration in configurations:
        for name, said in options_of(type(configuration)).items():
            if (value := getattr(configuration, name)) is not None:
                groups[said.group].append(_line(name, value))
    return "\n".join(f"# {group}\n{''.join(lines)}" for group, lines in groups.items() if lines)


def _line(name: str, value: Any) -> str:
    """A key and its value, lists within brackets."""
    import yaml

    style: dict[str, Any] = {"allow_unicode": True, "width": math.inf}
    if isinstance(value, tuple):
        return f"{name}: {yaml.safe_dump(_plain(value), default_flow_style=True, **style)}"
    return str(yaml.safe_dump({name: _plain(value)}, default_flow_style=False, **style))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path | Enum) else value
