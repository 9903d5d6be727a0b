"""Records: what was said, and the calls that it asks for.

The file format is JSON Lines of `{"utterance", "calls", "lang", "id"}`; OpenAI's fine-tuning format
(`{"messages": [...]}`) is read too. `calls: []` means that no function fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from runtime.calls import Call, parse_calls
from runtime.errors import DataError
from runtime.schema import JSONValue
from runtime.strict import parse_json

Language = Literal["en", "zh"]

_KEYS = frozenset({"utterance", "calls", "lang", "id", "family", "template", "source"})


@dataclass(frozen=True)
class Record:
    """One utterance with its calls.

    Attributes:
        id: names the record in messages and reports.
        utterance: what was said.
        calls: what it asks for, in the order said; empty when no function fits.
        lang: language of the utterance.
        family: the template family it was generated from; unknown for collected data.
        template: the utterance with its argument values masked, where the generator knows it.
        source: where collected data came from.
    """

    id: str
    utterance: str
    calls: tuple[Call, ...]
    lang: Language
    family: str | None = None
    template: str | None = None
    source: str | None = None


def read_records(path: Path) -> list[Record]:
    """Read a JSON Lines file of records, of OpenAI messages, or of both. Blank lines are skipped.

    Raises:
        DataError: the file is missing or holds no record, or a record is malformed; the message names
            the file, the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no data file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    records = [
        _record(line, f"{path}:{number}", f"{path.stem}-{number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not records:
        raise DataError(f"{path} holds no records")
    return records


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records as JSON Lines; the same records give the same bytes."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(_fields(record), ensure_ascii=False) + "\n" for record in records)


def _fields(record: Record) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": record.id,
        "lang": record.lang,
        "utterance": record.utterance,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in record.calls],
    }
    optional = {"family": record.family, "template": record.template, "source": record.source}
    return fields | {key: value for key, value in optional.items() if value is not None}


def _record(line: str, where: str, fallback_id: str) -> Record:
    try:
        value: JSONValue = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a record is a JSON object, not {line.strip():.60}")
    if "messages" in value:
        return _conversation(value, where, fallback_id)
    if unknown := sorted(set(value) - _KEYS):
        raise DataError(f'{where}: unknown field "{unknown[0]}"; known are {", ".join(sorted(_KEYS))}')
    return Record(
        id=_string(value, "id", where),
        utterance=_string(value, "utterance", where),
        calls=_calls(value.get("calls"), f'{where}: "calls"'),
        lang=_language(_string(value, "lang", where), where),
        family=_optional_string(value, "family", where),
        template=_optional_string(value, "template", where),
        source=_optional_string(value, "source", where),
    )


def _conversation(value: Mapping[str, JSONValue], where: str, fallback_id: str) -> Record:
    """One user turn and the assistant's answer to it; a system message is not kept: the config has it."""
    messages = value["messages"]
    if not isinstance(messages, list):
        raise DataError(f'{where}: "messages" must be a list')
    turns = [
        message for message in _objects(messages, f'{where}: "messages"') if message.get("role") != "system"
    ]
    if [turn.get("role") for turn in turns] != ["user", "assistant"]:
        raise DataError(
            f'{where}: "messages" must be one user turn and one assistant turn, after any system turn'
        )
    user, assistant = turns
    utterance = _string(user, "content", f'{where}: "messages" user')
    language = value.get("lang")
    return Record(
        id=_string(value, "id", where) if "id" in value else fallback_id,
        utterance=utterance,
        calls=_answer(assistant, f'{where}: "messages" assistant'),
        lang=_guess(utterance) if language is None else _language(_string(value, "lang", where), where),
        source=_optional_string(value, "source", where),
    )


def _answer(assistant: Mapping[str, JSONValue], where: str) -> tuple[Call, ...]:
    """The calls of `tool_calls`, or of content that is a JSON list of calls; other content is a refusal."""
    tool_calls, content = assistant.get("tool_calls"), assistant.get("content")
    if tool_calls is not None:
        if not isinstance(tool_calls, list):
            raise DataError(f'{where}: "tool_calls" must be a list')
        functions = [call.get("function") for call in _objects(tool_calls, f'{where} "tool_calls"')]
        return _calls(functions, f'{where} "tool_calls" "function"')
    if not isinstance(content, str):
        raise DataError(f'{where}: needs "tool_calls" or a string "content"')
    if not content.lstrip().startswith("["):
        return ()
    try:
        return parse_calls(content)
    except DataError as error:
        raise DataError(f'{where} "content": {error}') from error


def _calls(value: JSONValue, where: str) -> tuple[Call, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list of calls; [] when no function fits")
    return tuple(_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _call(value: JSONValue, where: str) -> Call:
    if not isinstance(value, dict):
        raise DataError(f'{where} must be an object of "name" and "arguments"')
    if unknown := sorted(set(value) - {"name", "arguments"}):
        raise DataError(f'{where}: unknown field "{unknown[0]}"; a call has "name" and "arguments"')
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = cast(JSONValue, parse_json(arguments))
        except ValueError as error:
            raise DataError(f'{where} "arguments" is not valid JSON: {error}') from error
    if not isinstance(arguments, dict):
        raise DataError(f'{where} "arguments" must be an object')
    return Call(_string(value, "name", where), arguments)


def _objects(values: list[JSONValue], where: str) -> Iterator[dict[str, JSONValue]]:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{where}[{index}] must be an object")
        yield value


def _string(value: Mapping[str, JSONValue], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{where}: "{key}" must be a string that is not empty')
    return text


def _optional_string(value: Mapping[str, JSONValue], key: str, where: str) -> str | None:
    return None if value.get(key) is None else _string(value, key, where)


def _language(text: str, where: str) -> Language:
    if text not in get_args(Language):
        raise DataError(f'{where}: "lang" must be one of {", ".join(get_args(Language))}, not "{text:.20}"')
    return cast(Language, text)


def _guess(utterance: str) -> Language:
    """Chinese when any character is a CJK ideograph: OpenAI's format has no field for the language."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in utterance) else "en"
