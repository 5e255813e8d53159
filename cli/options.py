"""Options of commands, made of configurations: a command takes dataclasses, and their fields are what one types.

    @configured
    def measure_command(asked: Choices, recipe: Recipe, given: Given) -> None: ...

Each field of `Choices` and `Recipe` is an option with the help, the default and the group that it states, and a key of
`--config FILE`; what is typed goes before what the file says. The command gets the dataclasses made, limits checked.
Beside them a command has only its arguments (a prompt, run folders), which typer reads.
"""

from __future__ import annotations

import functools
import inspect
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Optional, Union, get_args, get_origin, get_type_hints

import typer

from forward_influence.cli import wording
from forward_influence.utils.configuration import GROUPS, Option, options_of

_CONTEXT = "context_of_command"
_NO = "no_"


@dataclass(frozen=True)
class Given:
    """What was asked for; everything else has its default.

    Attributes:
        fields: that were typed or stand in the file.
        command: the command with what a file said typed out, which a manifest can repeat; "" where there was no file.
        instead: the command, typed out, with other values of some fields; None leaves one out.
    """

    fields: frozenset[str] = frozenset()
    command: str = ""
    instead: Callable[..., str] = field(default=lambda **values: "", repr=False, compare=False)


class Only:
    """Of a configuration, these fields alone (all where none is named), some with other defaults or help.

    Args:
        names: fields.
        changed: field -> another default; `field_help` -> another help; `field_shown` -> what the default comes to.
    """

    def __init__(self, *names: str, **changed: Any) -> None:
        self.names, self.changed = names, changed


@dataclass(frozen=True)
class Setting:
    """One field of a configuration, as a command takes it.

    Attributes:
        name: the field's.
        kind: the type of what is typed.
        said: what the field says of itself.
        default: its value where nothing is typed.
    """

    name: str
    kind: Any
    said: Option
    default: Any

    @property
    def typed(self) -> str:
        """The option, --protect-last."""
        return "--" + (self.said.typed or self.name).replace("_", "-")

    def value(self, text: Any) -> Any:
        """The field's value of what was typed.

        Raises:
            UsageError: it cannot be read.
        """
        if self.said.read is not None:
            return self.said.read(text)
        return tuple(text) if isinstance(text, list) else text

    def parameters(self) -> list[inspect.Parameter]:
        """For typer: the option, and of a flag that is off by itself a hidden --no-option, against a file's."""
        said, empty = self.said, self.default is None or self.default == ()
        flag = self.kind is bool and not self.default and not empty
        names = f"{self.typed}/{self._off}" if self.kind is bool and not flag else self.typed
        option = typer.Option(
            names,
            help=said.help,
            rich_help_panel=said.group,
            metavar=said.metavar,
            show_default="off" if flag else said.shown or not empty,
        )
        kind = Optional[self.kind] if empty else self.kind  # noqa: UP045 (the kind is a value)
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        found = [_parameter(self.name, Annotated[kind, option], None if empty else default)]
        if flag:
            found.append(_parameter(_NO + self.name, Annotated[bool, typer.Option(self._off, hidden=True)], False))
        return found

    @property
    def _off(self) -> str:
        return f"--no-{self.typed[2:]}" if self.said.off is None else "--" + self.said.off.replace("_", "-")

    def words(self, value: Any) -> list[str]:
        """What is typed for a value as typer or a file gives it."""
        if isinstance(value, bool):
            return [self.typed if value else self._off]
        return [word for one in (value if isinstance(value, list) else [value]) for word in (self.typed, str(one))]


@dataclass(frozen=True)
class Taken:
    """A configuration that a command takes."""

    made: type
    settings: tuple[Setting, ...]

    @classmethod
    def of(cls, annotation: Any) -> Taken | None:
        """What a command's parameter annotated like this takes; None where that is no configuration."""
        only = next((extra for extra in get_args(annotation)[1:] if isinstance(extra, Only)), Only())
        made = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if not (isinstance(made, type) and hasattr(made, "__dataclass_fields__")):
            return None
        kinds, found = get_type_hints(made), []
        defaults = {f.name: None if f.default is MISSING else f.default for f in fields(made)} | only.changed
        for name, said in options_of(made).items():
            if not only.names or name in only.names:
                shown = only.changed.get(f"{name}_shown", None if name in only.changed else said.shown)
                said = replace(said, help=only.changed.get(f"{name}_help", said.help), shown=shown)
                found.append(Setting(name, _kind(kinds[name], said), said, defaults[name]))
        return cls(made, tuple(found))

    def make(self, values: Mapping[str, Any]) -> Any:
        """The configuration with these values of its fields; the others have their defaults."""
        return self.made(**{s.name: values.get(s.name, s.default) for s in self.settings})


def _kind(hint: Any, said: Option) -> Any:
    """The type of what is typed for a field of this type."""
    if said.read is not None:
        return str
    if get_origin(one := _typed(hint)) is tuple:
        return list[_typed(get_args(one)[0])]  # type: ignore[misc]
    return one


def _typed(hint: Any) -> Any:
    """The type itself, or of several that a value can have the text that is typed for all of them."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    return kinds[0] if len(kinds) == 1 else str


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_FILE = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config",
        help="A YAML file of options by name; what is typed goes before it.",
        metavar="FILE",
        show_default="none",
    ),
]


#: For commands that can say what they would do, and what that costs.
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Run nothing: show what would be, what it costs, and the YAML that --config takes.",
        show_default="off",
    ),
]

#: For commands whose result a program may read.
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Write the result as JSON on standard output, and nothing else.",
        show_default="off",
    ),
]


def configured(command: Callable[..., None] | None = None, *, passes_over: Sequence[type] = ()) -> Callable[..., Any]:
    """The command with an option for every field of the configurations that it takes, for typer.

    A parameter that is annotated `Given` gets which fields were asked for; with it the command takes `--config`. Others
    are left to typer.

    Args:
        passes_over: configurations whose fields may stand in a file although the command does not take them: another
            command's file can then be given.
    """
    if command is None:
        return functools.partial(configured, passes_over=passes_over)
    hints = get_type_hints(command, include_extras=True)
    declared = inspect.signature(command).parameters
    parts = {name: part for name in declared if (part := _part(hints[name])) is not None}
    given = next((name for name in declared if hints[name] is Given), None)
    own_context = next((name for name in declared if hints[name] is typer.Context), None)
    settings = {s.name: s for part in parts.values() for s in part.settings}
    left_to_typer = [name for name in declared if name not in parts and name not in (given, own_context)]
    plain = [_parameter(name, hints[name], declared[name].default) for name in left_to_typer]
    if given is not None:
        plain.append(_parameter("config", _FILE, None))
    ordered = sorted(settings.values(), key=lambda s: GROUPS.index(s.said.group))
    parameters = [_parameter(_CONTEXT, typer.Context), *plain, *(p for s in ordered for p in s.parameters())]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        context = values.pop(_CONTEXT)
        wording.learn(context.find_root().command, context.command)
        file = values.pop("config", None)
        asked = {} if file is None else _from_file(file, settings, passes_over)
        asked |= {name: values[name] for name in settings if _is_typed(context, name)}
        asked |= {name: False for name in settings if values.pop(_NO + name, False)}
        read = {name: settings[name].value(value) for name, value in asked.items()}
        arguments = {name: value for name, value in values.items() if name not in settings}
        arguments |= {name: part.make(read) for name, part in parts.items()}
        if own_context is not None:
            arguments[own_context] = context
        if given is not None:

            def typed_out(**values: Any) -> str:
                all_values = {name: value for name, value in (asked | values).items() if value is not None}
                words = [word for name, value in all_values.items() for word in settings[name].words(value)]
                return shlex.join(["forward-influence", context.info_name, *words])

            arguments[given] = Given(frozenset(asked), "" if file is None else typed_out(), typed_out)
        command(**arguments)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _part(annotation: Any) -> Taken | None:
    return None if annotation is Given else Taken.of(annotation)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _from_file(path: Path, settings: Mapping[str, Setting], passes_over: Sequence[type]) -> dict[str, Any]:
    from forward_influence.cli.experiment import read_experiment

    others = {s.name: s for made in passes_over if (part := Taken.of(made)) is not None for s in part.settings}
    read = read_experiment(path, (others | dict(settings)).values())
    return {name: value for name, value in read.items() if name in settings}
