"""A JSON value as a frozen dataclass, strictly: every unknown, missing or ill-typed field is named."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal, NoReturn, TypeVar

Record = TypeVar("Record")


def parse_json(text: str) -> Any:
    """Parse JSON without the extensions and silences of the standard parser.

    Raises:
        ValueError: the text is not JSON, has NaN or infinity, nests too deeply, or repeats a name.
    """
    try:
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(kind: type[Record], value: Any) -> tuple[Record | None, list[str]]:
    """Read a parsed JSON value as a dataclass.

    Fields may be dataclasses, `X | None`, `Literal`, `tuple[X, ...]`, `dict[str, X]`, `str`, `int`,
    `float`, `bool`, and `object` for any JSON value.

    Returns:
        The record, or None when there are problems; and the problems, one sentence each.
    """
    problems: list[str] = []
    record = _read(kind, value, "", problems)
    return (None if problems else typing.cast(Record, record)), problems


def _read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if kind is object:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast(type, kind), value, where, problems)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, where, problems)
    if origin is Literal:
        # `True == 1`, so that the type is compared too.
        if not any(type(value) is type(allowed) and value == allowed for allowed in arguments):
            problems.append(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r:.60}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            problems.append(f"{where} must be a list, not {value!r:.60}")
            return ()
        return tuple(_read(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{where} must be an object, not {value!r:.60}")
            return {}
        return {name: _read(arguments[1], item, f"{where}.{name}", problems) for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if kind is float and type(value) is float and not math.isfinite(value):
        problems.append(f"{where} must be finite, not {value!r}")
        return value
    if type(value) is not kind:
        problems.append(f"{where} must be of type {kind.__name__}, not {value!r:.60}")
    return value


def _read_fields(kind: type, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where or 'the document'} must be an object, not {value!r:.60}")
        return None
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    problems += [f"{prefix}{name:.80} is not a known field" for name in value if name not in hints]
    problems += [f"{prefix}{name} is missing" for name in hints if name not in value]
    found = {
        name: _read(hint, value[name], f"{prefix}{name}", problems)
        for name, hint in hints.items()
        if name in value
    }
    return kind(**found) if found.keys() == hints.keys() else None


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'the name "{next(n for n in names if names.count(n) > 1):.60}" is repeated')
    return value
