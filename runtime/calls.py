"""Function calls: tool schemas, the one text of a list of calls, and back from text to checked calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime import schema
from runtime.errors import DataError
from runtime.grammar import Rules, literal, scalar_text
from runtime.schema import JSONValue, Object
from runtime.strict import parse_json

AnswerForm = Literal["json", "hermes"]
"""How calls are written: one JSON array, or a `<tool_call>` element for each (the form that the chat
templates of Qwen2.5 and Qwen3 define). No call is `[]` in the first and no text in the second."""

_OPEN, _CLOSE = "<tool_call>\n", "\n</tool_call>"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ELEMENT = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One function call."""

    name: str
    arguments: dict[str, JSONValue]


@dataclass(frozen=True)
class Tool:
    """A function that may be called.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; at most 64.
        description: what it does, for a person and for a chat template that lists tools.
        parameters: JSON Schema of its arguments, as written.
        arguments: the same, read.
    """

    name: str
    description: str
    parameters: dict[str, JSONValue]
    arguments: Object


def answer_form(template: str) -> AnswerForm:
    """The chat template's own form of a call where it defines one, else a JSON array.

    Raises:
        DataError: the template writes calls in a form that is not known here.
    """
    if "tool_calls" not in template:
        return "json"
    if "<tool_call>" not in template:
        raise DataError(
            "the chat template writes tool calls in a form that is not known here; choose a base that "
            "writes <tool_call> JSON </tool_call>, or one without tool calls"
        )
    return "hermes"


def load_tools(path: Path) -> tuple[Tool, ...]:
    """Read a tools.json.

    Raises:
        DataError: the file is missing or is not a list of functions that can be enforced.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no tools file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the tools file {path}: {error}") from error
    try:
        return parse_tools(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def parse_tools(text: str) -> tuple[Tool, ...]:
    """Read a JSON list of functions: `{"name", "description", "parameters"}`, bare or in OpenAI's envelope.

    Raises:
        DataError: it is not such a list, names a function twice, or a schema uses a keyword that is not
            enforced (`runtime.schema`).
    """
    listed = _strict_json(text, "the tools")
    if not isinstance(listed, list) or not listed:
        raise DataError("the tools must be a JSON list of at least one function")
    tools = tuple(_tool(value, f"tool {index}") for index, value in enumerate(listed))
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"these tools are defined twice: {', '.join(twice)}")
    return tools


def call_text(calls: Sequence[Call], tools: Sequence[Tool], form: AnswerForm = "json") -> str:
    """The canonical text of calls: arguments in schema order, numbers without exponent or trailing zeros.

    Raises:
        DataError: a call does not satisfy its tool's schema.
    """
    known = {tool.name: tool for tool in tools}
    for call in calls:
        check_call(call, tools)
    comma, colon = _separators(form)
    texts = [
        f'{{"name"{colon}"{call.name}"{comma}"arguments"{colon}'
        f"{_value_text(known[call.name].arguments, call.arguments, comma, colon)}}}"
        for call in calls
    ]
    if form == "hermes":
        return "\n".join(f"{_OPEN}{text}{_CLOSE}" for text in texts)
    return f"[{comma.join(texts)}]"


def parse_calls(text: str, form: AnswerForm = "json") -> tuple[Call, ...]:
    """The calls in an answer, not yet checked against any tool. White space between tokens is free.

    Raises:
        DataError: the text is not a list of calls and nothing else.
    """
    if form == "hermes":
        return _hermes(text)
    listed = _strict_json(text, "the answer")
    if not isinstance(listed, list):
        raise DataError(f"the answer must be a JSON list of calls, not {text!r:.80}")
    return tuple(_call(value) for value in listed)


def check_call(call: Call, tools: Sequence[Tool]) -> None:
    """Refuse a call that its tool does not allow.

    Raises:
        DataError: with every problem in one message.
    """
    if found := problems(call, tools):
        raise DataError("; ".join(found))


def problems(call: Call, tools: Sequence[Tool]) -> list[str]:
    """Everything that is wrong with a call, one sentence each; empty when it may be executed."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return [f'there is no function "{call.name:.64}"; there are {", ".join(t.name for t in tools)}']
    return list(schema.problems(tool.arguments, call.arguments, call.name))


def call_grammar(tools: Sequence[Tool], form: AnswerForm = "json") -> str:
    """An llguidance grammar whose language is exactly `{call_text(calls, tools, form)}`."""
    comma, colon = _separators(form)
    rules = Rules(comma, colon)
    each = []
    for tool in tools:
        head = f'{{"name"{colon}"{tool.name}"{comma}"arguments"{colon}'
        each.append(f"{literal(head)} {rules.value(tool.arguments)}")
    call = rules.rule(f'({" | ".join(each)}) "}}"')
    if form == "hermes":
        element = rules.rule(f"{literal(_OPEN)} {call} {literal(_CLOSE)}")
        return rules.text(rf'({element} ("\n" {element})*)?')
    return rules.text(f'"[" ({call} ({literal(comma)} {call})*)? "]"')


def _separators(form: AnswerForm) -> tuple[str, str]:
    """Between members, and between name and value: compact, or what a chat template's `tojson` writes."""
    return (", ", ": ") if form == "hermes" else (",", ":")


def _value_text(kind: schema.Schema, value: JSONValue, comma: str, colon: str) -> str:
    if isinstance(kind, schema.Object) and isinstance(value, dict):
        members = (
            f"{scalar_text(name)}{colon}{_value_text(inner, value[name], comma, colon)}"
            for name, inner in kind.properties.items()
            if name in value
        )
        return f"{{{comma.join(members)}}}"
    if isinstance(kind, schema.Array) and isinstance(value, list):
        return f"[{comma.join(_value_text(kind.items, item, comma, colon) for item in value)}]"
    if value is None or isinstance(value, list | dict):
        raise DataError(f"{value!r:.60} does not fit its schema")
    return scalar_text(value)


def _hermes(text: str) -> tuple[Call, ...]:
    calls, at = [], 0
    while at < len(text):
        element = _ELEMENT.match(text, at)
        if element is None:
            if text[at:].strip():
                raise DataError(f"the answer has text outside <tool_call> elements: {text[at:]!r:.80}")
            break
        calls.append(_call(_strict_json(element[1], "a <tool_call>")))
        at = element.end()
    return tuple(calls)


def _call(value: JSONValue) -> Call:
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        raise DataError(f'a call must be an object of "name" and "arguments", not {value!r:.80}')
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DataError(f'a call needs a string "name" and an object "arguments", not {value!r:.80}')
    return Call(name, arguments)


def _tool(value: JSONValue, where: str) -> Tool:
    if isinstance(value, dict) and value.get("type") == "function":
        value = value.get("function")
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, not {value!r:.60}")
    if unknown := sorted(set(value) - {"name", "description", "parameters"}):
        raise DataError(f"{where} has the unknown fields {', '.join(unknown)}")
    name, description = value.get("name"), value.get("description", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"{where} needs a name of letters, digits, _ . and -, not {name!r:.60}")
    if not isinstance(description, str):
        raise DataError(f'the description of tool "{name}" must be a string')
    parameters = value.get("parameters", {"type": "object", "properties": {}})
    arguments = schema.parse_schema(parameters, f'tool "{name}"')
    if not isinstance(arguments, Object) or not isinstance(parameters, dict):
        raise DataError(f'the parameters of tool "{name}" must have "type": "object"')
    return Tool(name, description, parameters, arguments)


def _strict_json(text: str, what: str) -> JSONValue:
    try:
        value: JSONValue = parse_json(text)
    except ValueError as error:
        raise DataError(f"{what} is not valid JSON: {error}") from error
    return value
