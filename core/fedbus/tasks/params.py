"""A plan's `train:` section checked against a task's `Params`. Standard library only."""

from __future__ import annotations

import dataclasses
import types
import typing
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple, Type

if TYPE_CHECKING:
    from fedbus.tasks.task import TrainingTask

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # X | Y, from Python 3.10


def build_params(task_class: Type[TrainingTask], values: Mapping[str, Any]) -> Any:
    """Make a task's `Params` from plain values, as JSON or YAML gives them.

    A whole number is taken for a float, a list for a tuple; a bool is not a number.

    Args:
        task_class: a class whose `Params` is a dataclass.
        values: parameters by name.

    Raises:
        ValueError: unknown, wrong or missing parameters, each named, in one line.
    """
    cls = task_class.Params
    if not dataclasses.is_dataclass(cls):
        raise ValueError("{}.Params must be a dataclass".format(task_class.__name__))
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError) as error:  # such as `int | None` under Python 3.9
        raise ValueError("{}.Params: {}".format(task_class.__name__, error)) from error
    problems = [_unknown(name, fields) for name in values if name not in fields]
    given: Dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            try:
                given[name] = _convert(values[name], hints[name])
            except ValueError as error:
                problems.append("{}: {}".format(name, error))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append("{}: missing".format(name))
    if problems:
        raise ValueError("; ".join(problems))
    try:
        return cls(**given)
    except ValueError as error:
        text = str(error)
        named = any(name in text for name in fields)
        raise ValueError(text if named else "{}: {}".format(", ".join(given) or "defaults", text)) from error


def build_task(task_class: Type[TrainingTask], values: Mapping[str, Any]) -> TrainingTask:
    """Make a task with its parameters set, ready for any call.

    Raises:
        ValueError: as `build_params`.
    """
    params = build_params(task_class, values)
    task = task_class()
    task.params = params
    return task


def _unknown(name: str, fields: Mapping[str, Any]) -> str:
    close = get_close_matches(str(name), list(fields), n=1, cutoff=0.6)
    if close:
        return "{}: unknown key; did you mean {!r}?".format(name, close[0])
    return "{}: unknown key; known: {}".format(name, ", ".join(fields) or "none, the task has no parameters")


def _convert(value: Any, hint: Any) -> Any:
    """The value as the annotation wants it, or ValueError."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in _UNIONS:
        return _convert_union(value, arguments)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ValueError("must be one of {}, got {!r}".format(", ".join(map(repr, arguments)), value))
    kind = origin or hint
    if kind in (list, tuple):
        return _convert_sequence(value, kind, arguments)
    if kind is dict:
        if not isinstance(value, dict):
            raise ValueError("must be a mapping, got {}".format(_name(value)))
        key_hint, value_hint = arguments or (Any, Any)
        return {_convert(k, key_hint): _convert(v, value_hint) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or not isinstance(kind, type):
        return value  # an annotation that says no type, such as Any
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    expected = _WORDS.get(kind, kind.__name__)
    raise ValueError("must be {}, got {}{}".format(expected, _name(value), _hint(value, kind)))


def _convert_union(value: Any, choices: Tuple[Any, ...]) -> Any:
    reasons: List[str] = []
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):  # 1 stays int in int | float
        try:
            return _convert(value, choice)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _convert_sequence(value: Any, kind: Any, arguments: Tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list, got {}".format(_name(value)))
    if kind is list or not arguments or arguments[-1] is Ellipsis:
        hints = [arguments[0] if arguments else Any] * len(value)
    elif len(arguments) == len(value):
        hints = list(arguments)
    else:
        raise ValueError("must be a list of {}, got {}".format(len(arguments), len(value)))
    return kind(_convert(item, hints[i]) for i, item in enumerate(value))


def _name(value: Any) -> str:
    return "{!r} ({})".format(value, _WORDS.get(type(value), type(value).__name__))


def _hint(value: Any, kind: Any) -> str:
    """YAML 1.1 reads 1e-3 as text, which surprises everybody once."""
    if kind is float and isinstance(value, str):
        try:
            return "; write {}".format(_yaml_float(float(value)))
        except ValueError:
            pass
    return ""


def _yaml_float(number: float) -> str:
    text = repr(number)
    mantissa, e, exponent = text.partition("e")
    return mantissa + ("" if "." in mantissa or not e else ".0") + e + exponent
