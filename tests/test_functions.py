"""Which functions a task is about: patterns, near names, and records that belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import Base, Config, Data, Task
from pipeline.data.functions import matching, refuse_unmatched
from pipeline.data.generator.generate import generate
from pipeline.data.prepare import prepare
from pipeline.data.records import Record, read_records
from runtime.calls import Tool, load_tools
from runtime.errors import ConfigError, DataError

COCKPIT = Path(__file__).parents[1] / "configs" / "cockpit-tools.json"


def config(data: Data, *tasks: Task) -> Config:
    return Config(name="t", base=Base(source="path", path=Path("base")), data=data, task=tasks)


def called(records: list[Record]) -> set[str]:
    return {call.name for record in records for call in record.calls}


def test_names_and_patterns_match_functions(tiny_tools: tuple[Tool, ...]) -> None:
    assert matching(["climate_*", "media_play"], tiny_tools) == {"climate_set_temperature", "media_play"}
    assert matching([], tiny_tools) == {tool.name for tool in tiny_tools}


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("climat_*", '"climate_*"'), ("media_plai", '"media_play"'), ("zzz", "they are climate_set_temp")],
)
def test_a_pattern_that_matches_nothing_offers_near_names(
    tiny_tools: tuple[Tool, ...], pattern: str, near: str
) -> None:
    with pytest.raises(ConfigError, match=f'"{pattern.replace("*", ".")}" matches no function') as caught:
        matching(["media_*", pattern], tiny_tools)
    assert near in str(caught.value)


def test_the_patterns_of_all_tasks_are_checked_at_once(tiny_tools_file: Path) -> None:
    tasks = (
        Task(name="cabin", functions=("climat_*", "windw_*")),
        Task(name="media", functions=("media_*",)),
        Task(name="light", functions=("lite_*",)),
    )
    with pytest.raises(ConfigError) as caught:
        refuse_unmatched(config(Data(tools=tiny_tools_file), *tasks))
    for clause in ('task "cabin": "climat_*"', 'task "cabin": "windw_*"', 'task "light": "lite_*"'):
        assert clause in str(caught.value)
    assert "media" not in str(caught.value).partition("they are")[0]
    refuse_unmatched(config(Data(tools=tiny_tools_file), tasks[1]))


def test_generated_records_speak_of_the_tasks_functions_alone(tmp_path: Path) -> None:
    data = Data(
        tools=COCKPIT,
        functions=("nav_*",),
        train_examples=100,
        validation_examples=20,
        test_examples=40,
    )
    prepare(config(data), tmp_path)
    wanted = matching(data.functions, load_tools(COCKPIT))
    train = read_records(tmp_path / "train.jsonl")
    assert called(train) == wanted
    assert called(read_records(tmp_path / "test.jsonl")) <= wanted
    assert any(not record.calls for record in train)
    assert any(len(record.calls) > 1 for record in train)
    assert (tmp_path / "tools.json").read_bytes() == COCKPIT.read_bytes()


def test_a_task_of_one_function_has_no_compound_utterances() -> None:
    tools = load_tools(COCKPIT)
    records = generate(
        tools, split="train", examples=40, chinese=0.0, seed=0, functions={"climate_set_temperature"}
    )
    assert called(records) == {"climate_set_temperature"}
    assert max(len(record.calls) for record in records) == 1
    assert len(records) == 40


def test_records_of_files_that_call_others_are_left_out(tiny_tools_file: Path, tmp_path: Path) -> None:
    calls = {
        "set it to 20": [{"name": "climate_set_temperature", "arguments": {"celsius": 20}}],
        "hazard": [{"name": "light_set_hazard", "arguments": {"on": True}}],
        "both": [
            {"name": "climate_set_temperature", "arguments": {"celsius": 21}},
            {"name": "light_set_hazard", "arguments": {"on": False}},
        ],
        "what is love": [],
    }
    file = tmp_path / "all.jsonl"
    lines = [
        json.dumps({"id": text, "lang": "en", "utterance": text, "calls": made})
        for text, made in calls.items()
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    files = Data(tools=tiny_tools_file, functions=("climate_*",), train=file, validation=file, test=file)
    (tmp_path / "out").mkdir()
    prepare(config(files), tmp_path / "out")
    kept = [record.utterance for record in read_records(tmp_path / "out" / "train.jsonl")]
    assert kept == ["set it to 20", "what is love"]
    with pytest.raises(DataError, match=r"all\.jsonl has no record that calls only media_play"):
        prepare(config(files.model_copy(update={"functions": ("media_*",)})), tmp_path / "out")
