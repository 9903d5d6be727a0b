import json
from pathlib import Path

import pytest

from pipeline.data.records import Record, read_records, write_records
from runtime.calls import Call
from runtime.errors import DataError

RECORD = {
    "id": "a",
    "lang": "en",
    "utterance": "turn on the AC",
    "calls": [{"name": "ac", "arguments": {"on": True}}],
}


def _read(tmp_path: Path, *lines: object) -> list[Record]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return read_records(path)


def _messages(assistant: object, **more: object) -> dict[str, object]:
    return {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "turn on the AC"},
            assistant,
        ],
        **more,
    }


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    records = [
        Record(
            "a",
            "把主驾调到22.5度",
            (Call("t", {"zone": "driver", "celsius": 22.5}),),
            "zh",
            "zh/t/0",
            "把{zone}",
        ),
        Record("b", "hello\u2028there", (), "en", source="collected"),
    ]
    path = tmp_path / "data.jsonl"
    write_records(records, path)
    assert read_records(path) == records
    first = path.read_bytes()
    write_records(read_records(path), path)
    assert path.read_bytes() == first


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    assert [record.id for record in _read(tmp_path, "", RECORD, "  ")] == ["a"]


@pytest.mark.parametrize("arguments", [{"on": True}, '{"on": true}'])
def test_openai_tool_calls_are_read(tmp_path: Path, arguments: object) -> None:
    function = {"name": "ac", "arguments": arguments}
    line = _messages({"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})
    (record,) = _read(tmp_path, line)
    assert record == Record("data-1", "turn on the AC", (Call("ac", {"on": True}),), "en")


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        ('[{"name":"ac","arguments":{"on":true}}]', (Call("ac", {"on": True}),)),
        ("[]", ()),
        ("I cannot do that.", ()),
    ],
)
def test_openai_content_is_read(tmp_path: Path, content: str, calls: tuple[Call, ...]) -> None:
    (record,) = _read(tmp_path, _messages({"role": "assistant", "content": content}))
    assert record.calls == calls


def test_the_language_of_openai_messages_is_seen_in_the_script(tmp_path: Path) -> None:
    line = _messages({"role": "assistant", "content": "[]"})
    line["messages"][1]["content"] = "打开 AC"  # type: ignore[index]
    assert _read(tmp_path, line)[0].lang == "zh"
    assert _read(tmp_path, {**line, "lang": "en"})[0].lang == "en"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"id": "a", "id": "b"}', "id"),
        ('{"id": NaN}', "NaN"),
        ({key: value for key, value in RECORD.items() if key != "id"}, '"id"'),
        ({**RECORD, "utterance": " "}, '"utterance"'),
        ({**RECORD, "lang": "fr"}, '"lang"'),
        ({**RECORD, "calls": None}, '"calls"'),
        ({**RECORD, "calls": ["ac"]}, '"calls"[0]'),
        ({**RECORD, "calls": [{"arguments": {}}]}, '"calls"[0]: "name"'),
        ({**RECORD, "calls": [{"name": "ac", "arguments": []}]}, '"calls"[0] "arguments"'),
        ({**RECORD, "calls": [{"name": "ac", "arguments": "{"}]}, '"calls"[0] "arguments"'),
        ({**RECORD, "calls": [{"name": "ac", "arguments": {}, "argumets": {}}]}, '"argumets"'),
        ({**RECORD, "utterence": "x"}, '"utterence"'),
        ({**RECORD, "family": 3}, '"family"'),
        ({"messages": {}}, '"messages"'),
        ({"messages": [{"role": "user", "content": "x"}]}, '"messages"'),
        (_messages({"role": "assistant"}), '"tool_calls"'),
        (_messages({"role": "assistant", "tool_calls": [{}]}), '"tool_calls"'),
        (_messages({"role": "assistant", "content": "[1]"}), '"content"'),
    ],
)
def test_a_malformed_record_names_file_line_and_field(tmp_path: Path, line: object, field: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, RECORD, line)
    assert f"{tmp_path / 'data.jsonl'}:2" in str(caught.value)
    assert field in str(caught.value)


def test_a_missing_an_empty_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no records"):
        _read(tmp_path, "")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot read"):
        read_records(tmp_path / "binary.jsonl")
