"""The part of JSON Schema (draft 2020-12) that a function's arguments may use.

A keyword outside this part is refused by name: a constraint that is read and not enforced is a hole
through which a model can put anything. Everything here can be both enforced while decoding
(`runtime.grammar`) and checked afterwards (`problems`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from runtime.errors import DataError

JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"
Scalar: TypeAlias = "bool | int | float | str"

ANNOTATIONS = frozenset({"description", "title", "default", "examples"})
KEYWORDS = {
    "string": frozenset({"minLength", "maxLength"}),
    "number": frozenset({"minimum", "maximum", "multipleOf"}),
    "integer": frozenset({"minimum", "maximum", "multipleOf"}),
    "boolean": frozenset[str](),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
MOST_DIGITS = 15
"""Digits of a number: a 64-bit float gives back any decimal this long unchanged."""
MOST_STEPS = 10_000
"""Values that a `multipleOf` may allow: each becomes a branch of the grammar."""
DEEPEST = 8


@dataclass(frozen=True)
class Text:
    """A string of `shortest` to `longest` code points."""

    shortest: int
    longest: int | None


@dataclass(frozen=True)
class Number:
    """A number without exponent; `step` makes it a multiple of that, between both bounds."""

    integer: bool
    minimum: Decimal | None
    maximum: Decimal | None
    step: Decimal | None


@dataclass(frozen=True)
class Boolean:
    """true or false."""


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Array:
    """`shortest` to `longest` items of one schema."""

    items: Schema
    shortest: int
    longest: int | None


@dataclass(frozen=True)
class Object:
    """Named members, always in this order; no others."""

    properties: dict[str, Schema]
    required: frozenset[str]


Schema: TypeAlias = Text | Number | Boolean | Choice | Array | Object


def parse_schema(value: JSONValue, where: str, depth: int = 0) -> Schema:
    """Read a JSON Schema.

    Args:
        value: the schema as parsed JSON.
        where: what it describes, for the message.
        depth: how many schemas it is inside of.

    Raises:
        DataError: the schema is malformed, contradicts itself, or uses a keyword that is not enforced.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} must be described by a JSON object, not {value!r:.60}")
    if depth > DEEPEST:
        raise DataError(f"{where} is nested more than {DEEPEST} deep; flatten the arguments")
    if "enum" in value or "const" in value:
        return _choice(value, where)
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in KEYWORDS:
        raise DataError(f'{where} needs "type", one of {", ".join(KEYWORDS)}, not {kind!r:.60}')
    _refuse_unknown(value, KEYWORDS[kind] | {"type"}, where)
    match kind:
        case "string":
            return Text(*_bounds(value, "minLength", "maxLength", where))
        case "boolean":
            return Boolean()
        case "array":
            if "items" not in value:
                raise DataError(f'{where} is an array and needs "items"')
            items = parse_schema(value["items"], f"each item of {where}", depth + 1)
            return Array(items, *_bounds(value, "minItems", "maxItems", where))
        case "object":
            return _object(value, where, depth)
        case _:
            return _number(value, where)


def problems(schema: Schema, value: JSONValue, where: str) -> Iterator[str]:
    """What is wrong with a value, one sentence each; nothing when it satisfies the schema."""
    match schema:
        case Text():
            yield from _text_problems(schema, value, where)
        case Number():
            yield from _number_problems(schema, value, where)
        case Boolean():
            if not isinstance(value, bool):
                yield f"{where} must be true or false, not {_show(value)}"
        case Choice(values):
            if not any(same(value, allowed) for allowed in values):
                yield f"{where} must be one of {', '.join(map(_show, values))}, not {_show(value)}"
        case Array(items, shortest, longest):
            if not isinstance(value, list):
                yield f"{where} must be an array, not {_show(value)}"
                return
            if len(value) < shortest or (longest is not None and len(value) > longest):
                yield f"{where} has {len(value)} items; allowed are {_span(shortest, longest)}"
            for index, item in enumerate(value):
                yield from problems(items, item, f"{where}[{index}]")
        case Object(properties, required):
            if not isinstance(value, dict):
                yield f"{where} must be an object, not {_show(value)}"
                return
            known = ", ".join(f'"{name}"' for name in properties) or "none"
            for name in value:
                if name not in properties:
                    yield f'{where} has no "{name}"; it has {known}'
            for name, inner in properties.items():
                if name in value:
                    yield from problems(inner, value[name], f'{where} "{name}"')
                elif name in required:
                    yield f'{where} lacks "{name}"'


def same(left: JSONValue, right: JSONValue) -> bool:
    """Equality of JSON scalars: 22 and 22.0 are one number, true and 1 are two values."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def decimal(value: int | float) -> Decimal:
    """The number as people write it: 0.1 is one tenth."""
    return Decimal(repr(value))


def number_text(value: int | float) -> str:
    """The one way a number is written: no exponent, no trailing zeros, no minus zero."""
    text = f"{decimal(value):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def steps(number: Number) -> list[Decimal]:
    """Every value of a number with a step, ascending."""
    if number.step is None or number.minimum is None or number.maximum is None:
        raise ValueError("only a number with a step and both bounds can be listed")
    first = math.ceil(number.minimum / number.step)
    last = math.floor(number.maximum / number.step)
    values = (count * number.step for count in range(first, last + 1))
    return [value for value in values if not number.integer or value == value.to_integral_value()]


def _choice(value: dict[str, JSONValue], where: str) -> Choice:
    _refuse_unknown(value, frozenset({"type", "enum", "const"}), where)
    listed = value.get("enum", [value.get("const")])
    if not isinstance(listed, list) or not listed:
        raise DataError(f'{where}: "enum" must list at least one value')
    values: list[Scalar] = []
    for item in listed:
        if item is None or isinstance(item, list | dict):
            raise DataError(
                f"{where} may only be chosen among strings, numbers and booleans, not {_show(item)}"
            )
        if "const" in value and not same(item, value["const"]):
            continue
        if any(same(item, seen) for seen in values):
            raise DataError(f"{where} lists {_show(item)} twice")
        values.append(item)
    if not values:
        raise DataError(f'{where}: "const" is not in "enum", so no value is allowed')
    if "type" in value:
        plain = parse_schema({"type": value["type"]}, where)
        for item in values:
            if wrong := next(problems(plain, item, where), None):
                raise DataError(f"{wrong}: the listed value contradicts the type")
    return Choice(tuple(values))


def _number(value: dict[str, JSONValue], where: str) -> Number:
    minimum = _bound(value, "minimum", where)
    maximum = _bound(value, "maximum", where)
    step = _bound(value, "multipleOf", where)
    if minimum is not None and maximum is not None and minimum > maximum:
        raise DataError(f"{where}: minimum {minimum} is above maximum {maximum}")
    number = Number(value["type"] == "integer", minimum, maximum, step)
    if (
        number.integer
        and minimum is not None
        and maximum is not None
        and math.ceil(minimum) > math.floor(maximum)
    ):
        raise DataError(f"{where}: no whole number lies between {minimum} and {maximum}")
    if step is not None:
        if step <= 0:
            raise DataError(f'{where}: "multipleOf" must be above 0')
        if minimum is None or maximum is None:
            raise DataError(
                f'{where}: "multipleOf" needs "minimum" and "maximum", so that values can be listed'
            )
        if (maximum - minimum) / step > MOST_STEPS:
            raise DataError(f'{where}: "multipleOf" allows more than {MOST_STEPS} values; widen the step')
        if not steps(number):
            raise DataError(f"{where}: no multiple of {step} lies between {minimum} and {maximum}")
    return number


def _object(value: dict[str, JSONValue], where: str, depth: int) -> Object:
    properties, required = value.get("properties", {}), value.get("required", [])
    if not isinstance(properties, dict):
        raise DataError(f'{where}: "properties" must be an object')
    if value.get("additionalProperties", False) is not False:
        raise DataError(
            f'{where}: "additionalProperties" may only be false: what is not described is not checked'
        )
    if not isinstance(required, list):
        raise DataError(f'{where}: "required" must be a list')
    for name in required:
        if name not in properties:
            raise DataError(f"{where} requires {_show(name)}, which its properties do not describe")
    inner = {name: parse_schema(item, f'{where} "{name}"', depth + 1) for name, item in properties.items()}
    return Object(inner, frozenset(str(name) for name in required))


def _text_problems(schema: Text, value: JSONValue, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where} must be a string, not {_show(value)}"
        return
    if len(value) < schema.shortest or (schema.longest is not None and len(value) > schema.longest):
        yield f"{where} has {len(value)} characters; allowed are {_span(schema.shortest, schema.longest)}"
    if any(not writable(character) for character in value):
        yield f"{where} has a control character or half of a surrogate pair in {_show(value)}"


def writable(character: str) -> bool:
    """Whether a character may stand in a string: all but surrogates and controls without a short escape."""
    return character in "\b\f\n\r\t" or not (
        character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff"
    )


def _number_problems(schema: Number, value: JSONValue, where: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        yield f"{where} must be {'an integer' if schema.integer else 'a number'}, not {_show(value)}"
        return
    text = number_text(value)
    if schema.integer and "." in text:
        yield f"{where} must be an integer, not {text}"
    if sum(character.isdigit() for character in text) > MOST_DIGITS:
        yield f"{where} has more than {MOST_DIGITS} digits"
    exact = decimal(value)
    if schema.minimum is not None and exact < schema.minimum:
        yield f"{where} is {text}; the minimum is {schema.minimum}"
    if schema.maximum is not None and exact > schema.maximum:
        yield f"{where} is {text}; the maximum is {schema.maximum}"
    if schema.step is not None and exact % schema.step != 0:
        yield f"{where} is {text}, not a multiple of {schema.step}"


def _refuse_unknown(value: dict[str, JSONValue], known: frozenset[str], where: str) -> None:
    if unknown := sorted(set(value) - known - ANNOTATIONS):
        raise DataError(
            f"{where} uses {', '.join(map(_show, unknown))}, which is not enforced here; "
            f"it may use {', '.join(sorted(known))}"
        )


def _bounds(value: dict[str, JSONValue], low: str, high: str, where: str) -> tuple[int, int | None]:
    shortest, longest = value.get(low, 0), value.get(high)
    for name, bound in ((low, shortest), (high, longest)):
        if bound is not None and (type(bound) is not int or bound < 0):
            raise DataError(f'{where}: "{name}" must be a whole number from 0, not {_show(bound)}')
    first = shortest if isinstance(shortest, int) else 0
    last = longest if isinstance(longest, int) else None
    if last is not None and first > last:
        raise DataError(f'{where}: "{low}" {first} is above "{high}" {last}')
    return first, last


def _bound(value: dict[str, JSONValue], name: str, where: str) -> Decimal | None:
    bound = value.get(name)
    if bound is None:
        return None
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        raise DataError(f'{where}: "{name}" must be a number, not {_show(bound)}')
    if sum(character.isdigit() for character in number_text(bound)) > MOST_DIGITS:
        raise DataError(f'{where}: "{name}" has more than {MOST_DIGITS} digits')
    return decimal(bound)


def _span(shortest: int, longest: int | None) -> str:
    return f"{shortest} or more" if longest is None else f"{shortest} to {longest}"


def _show(value: JSONValue) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str():
            return f'"{value:.60}"'.encode(errors="backslashreplace").decode()
        case _:
            return f"{value!r:.60}"
