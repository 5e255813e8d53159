"""Rules by name: registration, discovery, and the little language of `selectors`.

    NAME[:key=value,...]     a registered rule, or one from an entry point in the group forward_influence.selectors
    path/to/rules.py:Rule    a rule of one's own in a file, loaded only because it was named
    package.module:Rule      one in an importable module
    kvpress:SnapKVPress      a press of the kvpress package (an optional extra)

Parameters follow a second colon there. Values may nest in parentheses: position-matched:of=attention(window=32).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import Tensor

from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean, steering
from forward_influence.selectors.base import FunctionSelector, Selector, check_declarations
from forward_influence.selectors.places import home
from forward_influence.selectors.rule_files import load_file, source_of
from forward_influence.tracing.trace import Trace
from forward_influence.utils.discovery import load_modules
from forward_influence.utils.files import sha256

ENTRY_POINTS = "forward_influence.selectors"
_rules: dict[str, type[Selector]] = {}
_discovered = False


def selector(
    name: str, *, needs: str | Iterable[str] = (), source: str = "", stochastic: bool = False
) -> Callable[[Any], Any]:
    """Register a rule: a frozen dataclass derived from `Selector`, or a function `trace -> scores`.

    Args:
        name: what users type.
        needs: signals that the rule reads, one or several; a class may have a property `needs` instead.
        source: where the rule comes from (an arXiv id, say).
        stochastic: the rule draws at random and has a field `seed`.

    Raises:
        UsageError: another rule has that name, or a class declares its needs twice.

    Example:
        >>> from forward_influence.selectors import selector
        >>> @selector("rare-words", needs={"surprisal"})
        ... def rare_words(trace):
        ...     return trace.surprisal
        >>> rare_words.name
        'rare-words'
    """

    declared = frozenset({needs} if isinstance(needs, str) else needs)

    def register(rule: Any) -> Any:
        cls = _completed(rule) if isinstance(rule, type) else _from_function(rule)
        if declared and cls.needs is not Selector.needs:
            raise UsageError(f"rule {name!r} has a property `needs`, so leave needs={set(declared)} out of @selector")
        known = _rules.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"a rule named {name!r} exists already ({known.__module__}); choose another name")
        cls.name, cls.source, cls.stochastic = name, source, stochastic
        if declared:
            cls.declared = declared
        _rules[name] = cls
        return cls

    return register


def _from_function(function: Callable[[Trace], Tensor]) -> type[FunctionSelector]:
    members = {
        "function": staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
    }
    return dataclass_frozen(type(function.__name__, (FunctionSelector,), members))


def dataclass_frozen(cls: type) -> Any:
    """The class as the frozen dataclass that every rule is."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _completed(cls: type) -> Any:
    """A rule's class, made a dataclass where its author did not."""
    if not issubclass(cls, Selector):
        raise UsageError(f"{cls.__qualname__} is not a rule; derive it from forward_influence.Selector")
    return cls if "__dataclass_params__" in vars(cls) else dataclass_frozen(cls)


def discover() -> dict[str, type[Selector]]:
    """Every rule of this package, imported once; adding a rule touches no list."""
    global _discovered
    if not _discovered:
        load_modules(importlib.import_module("forward_influence.selectors"))
        _discovered = True
    return dict(sorted(_rules.items()))


def installed() -> dict[str, Any]:
    """Entry points of other packages, by name, not loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def parse_selector(text: str) -> Selector:
    """Make a rule from its specification.

    Raises:
        UsageError: unknown rule or parameter (with a suggestion), a value of the wrong kind, a file that fails.
    """
    cls, arguments = find_rule(text), _split(text.strip())[2]
    try:
        rule = cls(**_coerced(cls, arguments))
    except ForwardInfluenceError:
        raise
    except (Exception, SystemExit) as error:
        text = next(iter(str(error).splitlines()), "")
        raise UsageError(f"rule {cls.name!r} cannot be made: {type(error).__name__}: {text}{home(cls)}") from error
    check_declarations(rule)
    return rule


def find_rule(text: str) -> type[Selector]:
    """The class of the rule that a specification names; its parameters, if any, are not looked at.

    Raises:
        UsageError: unknown rule (with a suggestion), or a file that fails.
    """
    if character := steering(text):
        raise UsageError(f"rule {text[:80]!r} holds the control character {character}; write it without")
    where, name, _ = _split(text.strip())
    cls = _find(where, name)
    if "name" not in vars(cls) or not cls.name:
        cls.name = f"{where}:{name}" if where else name
    return cls  # type: ignore[no-any-return]


def spec_of(rule: Any) -> str:
    """The specification of a rule that is given as an object: what `parse_selector` makes it from in this process.

    Args:
        rule: a specification, which stays as it is; a rule; a rule's class; or a function `trace -> scores`. A class or
            function that has no name yet is registered under its own, with dashes; again once it has changed, as a
            notebook's cell does.

    Raises:
        UsageError: it is none of these, or another rule has that name.
    """
    if isinstance(rule, str):
        return rule
    made: Any = type(rule) if isinstance(rule, Selector) else rule
    cls: type[Selector] = made if isinstance(made, type) and vars(made).get("name") else _named(made)
    if isinstance(rule, Selector):
        return rule.spec
    _rules.setdefault(cls.name, cls)
    return cls.name


def _named(made: Any) -> type[Selector]:
    label = getattr(made, "__name__", repr(made))
    if isinstance(made, type) or not callable(made) or label == "<lambda>":
        _as_rule(made, label)  # refuses what is none
    if label == "<lambda>":
        raise UsageError("a lambda has no name to stand in results; write the rule as a function with `def`")
    return selector(label.replace("_", "-").lower())(made)  # type: ignore[no-any-return]


def typed_name(text: str) -> str:
    """A specification without its parameters: what to type to name the rule, its file or module included."""
    where, name, _ = _split(text.strip())
    return f"{where}:{name}" if where else name


def own_sources(rules: Iterable[Selector]) -> dict[str, str]:
    """Rule name -> SHA-256 of the code it comes from, for rules that are not of this package.

    A run of a rule of one's own is another run once its file has changed.
    """
    found: dict[str, str] = {}
    for rule in rules:
        made = getattr(rule, "function", type(rule))
        if not made.__module__.startswith("forward_influence."):
            found[rule.name] = sha256(source_of(made))
        found |= own_sources(rule.inner)
    return found


def parse_nested(text: str) -> Selector:
    """A rule inside another's parameter: its own parameters are in parentheses, attention(window=32).

    Raises:
        UsageError: as `parse_selector`, or parentheses that do not end the text.
    """
    name, parenthesis, rest = text.strip().partition("(")
    if not parenthesis:
        return parse_selector(name)
    if not rest.endswith(")"):
        raise UsageError(f"{text!r} is not a rule with its parameters in parentheses, attention(window=32) say")
    return parse_selector(f"{name}:{rest[:-1]}" if rest[:-1] else name)


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """A specification as (where, name, parameters as text); where is "" for a registered name."""
    head, *rest = split_outside(text, ":")
    where, name, arguments = "", head, ""
    if head.endswith(".py") or "/" in head or "\\" in head or head == "kvpress" or _is_module(head, rest):
        if not rest or not rest[0]:
            raise UsageError(f"{text!r} names no rule; write {head}:RuleName")
        where, name, rest = head, rest[0], rest[1:]
    if len(rest) > 1:
        arguments = ":".join(rest)
    elif rest:
        arguments = rest[0]
    if not name:
        raise UsageError(f"{text!r} names no rule; `forward-influence selectors` lists them")
    return where, name, _arguments(text, arguments)


def _is_module(head: str, rest: list[str]) -> bool:
    return bool(rest) and "=" not in rest[0] and head not in discover() and head not in installed()


def _arguments(text: str, arguments: str) -> dict[str, str]:
    """Key -> value, as text. A first value without a key has the key "", see `Selector.positional`."""
    result: dict[str, str] = {}
    for i, item in enumerate(split_outside(arguments, ",") if arguments else []):
        key, *rest = split_outside(item, "=")
        value = "=".join(rest)
        if not rest and i == 0 and item.strip():
            key, value = "", item
        elif not rest or not key.strip():
            raise UsageError(f"{text!r}: {item!r} is not key=value")
        if key.strip() in result:
            raise UsageError(f"{text!r}: {key.strip()} is given twice")
        result[key.strip()] = value.strip()
    return result


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a separator, but not inside parentheses.

    Raises:
        UsageError: parentheses that do not match.
    """
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
        if character == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth != 0:
        raise UsageError(f"{text!r}: parentheses do not match")
    return [*parts, text[start:]]


def _find(where: str, name: str) -> Any:
    if where == "kvpress":
        return importlib.import_module("forward_influence.selectors.kvpress_rule").press_rule(name)
    if where.endswith(".py") or "/" in where or "\\" in where:
        return _member(load_file(Path(where)), where, name)
    if where:
        return _member(_import(where), where, name)
    rules = discover()
    if name in rules:
        return rules[name]
    others = installed()
    if name in others:
        try:
            found = others[name].load()
        except Exception as error:
            raise UsageError(f"rule {name!r} from {others[name].value} cannot be loaded ({error})") from error
        return _as_rule(found, name)
    known = [*rules, *others]
    raise UsageError(f"unknown rule {name!r}{did_you_mean(name, known)}; `forward-influence selectors` lists them")


def _import(where: str) -> Any:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name == where and "." not in where:
            known = [*discover(), *installed()]
            raise UsageError(
                f"{where!r} is neither a rule{did_you_mean(where, known)} nor a module; "
                "parameters are written key=value, `forward-influence selectors` lists rules"
            ) from error
        raise UsageError(f"module {where!r} cannot be imported ({error})") from error
    except Exception as error:
        raise UsageError(f"module {where!r} cannot be imported ({type(error).__name__}: {error})") from error


def _member(module: Any, where: str, name: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        found = next((r for r in _rules.values() if r.name == name and r.__module__ == module.__name__), None)
    if found is None:
        known = [n for n, m in vars(module).items() if not n.startswith("_") and callable(m)]
        raise UsageError(f"{where} has no rule {name!r}{did_you_mean(name, known)}")
    return _as_rule(found, f"{where}:{name}")


def _as_rule(found: Any, label: str) -> Any:
    """A rule's class from what a file, module or entry point holds: a class, or a function `trace -> scores`."""
    if isinstance(found, type) and issubclass(found, Selector):
        return _completed(found)
    if isinstance(found, type) or not callable(found) or not hasattr(found, "__qualname__"):
        raise UsageError(f"{label} is not a rule; derive it from Selector or write a function of a trace")
    return _from_function(found)


def _coerced(cls: type[Selector], arguments: dict[str, str]) -> dict[str, Any]:
    """Texts as the types of the fields they are for."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "seed"}
    hints = get_type_hints(cls)
    result: dict[str, Any] = {}
    for given, text in arguments.items():
        key = given or cls.positional
        if not key:
            raise UsageError(f"rule {cls.name!r}: {text!r} is not key=value")
        if key in result:
            raise UsageError(f"rule {cls.name!r}: {key} is given twice")
        if key not in fields:
            raise UsageError(
                f"rule {cls.name!r} has no parameter {key!r}{did_you_mean(key, list(fields))}; "
                f"it has {', '.join(fields)}"
            )
        result[key] = _value(cls.name, key, text, hints[key])
    return result


def _value(rule: str, key: str, text: str, kind: Any) -> Any:
    options = [k for k in get_args(kind) if k is not type(None)]
    if type(None) in get_args(kind):
        if text.lower() == "none":
            return None
        kind = options[0]
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"{rule}: {key}={text} is neither true nor false")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise UsageError(f"{rule}: {key}={text} is not {word}") from None
    return text
