"""Tool schemas → a grammar that generates exactly the canonical text of calls.

The grammar is written in llguidance's Lark dialect from the schemas themselves: a general JSON Schema
compiler also admits `22.0`, `2.2e1` and `\\u0041`, and a model steered onto a spelling it was not
trained on answers worse. Here every call has one spelling.
"""

from __future__ import annotations

import json
from decimal import Decimal

from runtime.schema import (
    MOST_DIGITS,
    Array,
    Boolean,
    Choice,
    Number,
    Object,
    Scalar,
    Schema,
    Text,
    number_text,
    steps,
)

# What json.dumps writes for one character of a string: itself, or its two-character escape.
CHARACTER = r'([^"\\\x00-\x1F\x7F]|\\["\\bfnrt])'
OPTIONS = '%llguidance {"no_forcing": true}'
"""Left to itself, llguidance allows a single spelling in tokens of text that must follow, and not always
the one that training had: `runtime.constraint` does the forcing."""
FRACTION = r"(\.[0-9]*[1-9])?"


def scalar_text(value: Scalar) -> str:
    """The one spelling of a string, number or boolean."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return number_text(value)


class Rules:
    """Grammar rules under construction; each method returns the name or expression of what it added."""

    def __init__(self, comma: str, colon: str) -> None:
        self._comma, self._colon = comma, colon
        self._lines: list[str] = []

    def text(self, start: str) -> str:
        """The whole grammar in Lark, beginning at the expression `start`."""
        return "\n".join((OPTIONS, f"start: {start}", *self._lines)) + "\n"

    def rule(self, expression: str) -> str:
        """Add a rule."""
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}: {expression}")
        return name

    def value(self, schema: Schema) -> str:
        """Add the rules for a value of a schema."""
        match schema:
            case Text(shortest, longest):
                most = "" if longest is None else longest
                return self._terminal(f'/"{CHARACTER}{{{shortest},{most}}}"/')
            case Boolean():
                return self._terminal('"true" | "false"')
            case Choice(values):
                return self._terminal(" | ".join(literal(scalar_text(value)) for value in values))
            case Number():
                return self._terminal(_number(schema))
            case Array(items, shortest, longest):
                return self._array(self.value(items), shortest, longest)
            case Object():
                return self._object(schema)

    def _terminal(self, expression: str) -> str:
        # Upper case makes it one token of the grammar: a regular expression, not a production.
        name = f"T{len(self._lines)}"
        self._lines.append(f"{name}: {expression}")
        return name

    def _array(self, item: str, shortest: int, longest: int | None) -> str:
        if longest == 0:
            return self.rule('"[]"')
        rest = "" if longest is None else longest - 1
        filled = f'"[" {item} ({literal(self._comma)} {item}){{{max(shortest - 1, 0)},{rest}}} "]"'
        return self.rule(filled if shortest else f'"[]" | {filled}')

    def _object(self, schema: Object) -> str:
        """Members in schema order; which one comes first decides where the commas go."""
        members = [
            (f"{literal(json.dumps(name, ensure_ascii=False) + self._colon)} {self.value(inner)}", name)
            for name, inner in schema.properties.items()
        ]
        following = '"}"'
        starts: list[str] = []
        for member, name in reversed(members):
            required = name in schema.required
            starts = [f"{member} {following}"] if required else [f"{member} {following}", *starts]
            behind = f"{literal(self._comma)} {member}"
            following = self.rule(f"{behind if required else f'({behind})?'} {following}")
        if not schema.required:
            starts.append('"}"')
        return self.rule(f'"{{" ({" | ".join(starts)})')


def literal(text: str) -> str:
    """A quoted Lark string."""
    return json.dumps(text, ensure_ascii=False)


def _number(number: Number) -> str:
    """A terminal for the canonical spellings of a number within its bounds."""
    if number.step is not None:
        return " | ".join(f'"{_digits(value)}"' for value in steps(number))
    low, high = number.minimum, number.maximum
    sides = []
    if high is None or high >= 0:
        sides.append(_magnitude("", max(low or Decimal(0), Decimal(0)), high, number.integer))
    if low is None or low < 0:
        least = Decimal(0) if high is None or high > 0 else -high
        above_zero = _magnitude('"-" ', least, None if low is None else -low, number.integer)
        sides.append(f'{above_zero} & ~"-0"')
    return " | ".join(sides)


def _magnitude(sign: str, low: Decimal, high: Decimal | None, integer: bool) -> str:
    """Unsigned numbers from `low` to `high`, behind a sign: an intersection of regular expressions."""
    minus = "-" if sign else ""
    fraction = "" if integer else FRACTION
    parts = [f"/{minus}(0|[1-9][0-9]*){fraction}/"]
    # A point is the one character that is not a digit.
    parts.append(f"/{minus}([0-9]{{1,{MOST_DIGITS}}}|[0-9.]{{1,{MOST_DIGITS + 1}}})/")
    if low > 0:
        parts.append(f"/{minus}({_at_least(_digits(low))})/")
    if high is not None:
        parts.append(f"/{minus}({_at_most(_digits(high))})/")
    return " & ".join(parts)


def _digits(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _at_least(bound: str) -> str:
    """A regular expression for decimals without superfluous zeros that are `bound` or more."""
    whole, _, fraction = bound.partition(".")
    ways = [rf"[1-9][0-9]{{{len(whole)},}}(\.[0-9]+)?"]
    for at, digit in enumerate(whole):
        if digit < "9":
            ways.append(rf"{whole[:at]}[{int(digit) + 1}-9][0-9]{{{len(whole) - at - 1}}}(\.[0-9]+)?")
    for at, digit in enumerate(fraction):
        if digit < "9":
            ways.append(rf"{whole}\.{fraction[:at]}[{int(digit) + 1}-9][0-9]*")
    ways.append(rf"{whole}\.{fraction}[0-9]*" if fraction else rf"{whole}(\.[0-9]+)?")
    return "|".join(ways)


def _at_most(bound: str) -> str:
    """A regular expression for decimals without superfluous zeros that are `bound` or less."""
    whole, _, fraction = bound.partition(".")
    ways = [whole]
    if fraction:
        ways.append(rf"{whole}\.{fraction}")
    if len(whole) > 1:
        ways.append(rf"[0-9]{{1,{len(whole) - 1}}}(\.[0-9]+)?")
    for at, digit in enumerate(whole):
        if digit > "0":
            ways.append(rf"{whole[:at]}[0-{int(digit) - 1}][0-9]{{{len(whole) - at - 1}}}(\.[0-9]+)?")
    for at, digit in enumerate(fraction):
        if digit > "0":
            ways.append(rf"{whole}\.{fraction[:at]}[0-{int(digit) - 1}][0-9]*")
        if at:
            ways.append(rf"{whole}\.{fraction[:at]}")
    return "|".join(ways)
