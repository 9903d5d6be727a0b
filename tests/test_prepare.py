import json
from pathlib import Path

import pytest

from pipeline.config import Base, Config, Data
from pipeline.data.prepare import prepare
from pipeline.data.records import read_records
from runtime.errors import DataError

TOOLS = Path(__file__).parents[1] / "configs" / "cockpit-tools.json"


def _config(data: Data) -> Config:
    return Config(name="t", base=Base(source="path", path=Path("base")), data=data)


def _file(path: Path, *utterances: str, celsius: int = 20) -> Path:
    call = {"name": "climate_set_temperature", "arguments": {"celsius": celsius}}
    lines = ({"id": text, "lang": "en", "utterance": text, "calls": [call]} for text in utterances)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_generated_splits_are_written_counted_and_clean(tmp_path: Path) -> None:
    data = Data(tools=TOOLS, chinese=0.25, train_examples=300, validation_examples=50, test_examples=100)
    figures = prepare(_config(data), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "tools.json",
    }  # fmt: skip
    assert len(read_records(tmp_path / "train.jsonl")) == 300
    assert (tmp_path / "tools.json").read_bytes() == TOOLS.read_bytes()
    clean = {"identical_utterances": 0, "identical_families": 0, "identical_templates": 0.0}
    assert figures["leakage"] == {"validation": clean, "test": clean}
    counts = json.loads(json.dumps(figures))["splits"]["train"]
    assert counts["records"] == sum(counts["languages"].values()) == 300
    assert counts["languages"]["zh"] == 75
    assert counts["refusals"] == 45
    assert counts["functions"] == 38
    assert len(counts["domains"]) >= 9


def test_files_that_leak_are_measured_and_used(tmp_path: Path) -> None:
    files = {
        "train": _file(tmp_path / "a.jsonl", "set it to 20", "20 please"),
        "validation": _file(tmp_path / "b.jsonl", "make it 20"),
        "test": _file(tmp_path / "c.jsonl", "Set it to 20.", "now 20"),
    }
    (tmp_path / "out").mkdir()
    figures = prepare(_config(Data(tools=TOOLS, **files)), tmp_path / "out")
    assert figures["source"] == "files"
    assert figures["leakage"] == {
        "validation": {"identical_utterances": 0, "identical_families": 0, "identical_templates": 0.0},
        "test": {"identical_utterances": 1, "identical_families": 0, "identical_templates": 0.5},
    }


def test_validation_is_held_out_of_training_where_there_is_no_file(tmp_path: Path) -> None:
    train = _file(tmp_path / "a.jsonl", "set it to 20", "20 please", "make it 20", "now 20")
    test = _file(tmp_path / "b.jsonl", "I want 20")
    (tmp_path / "out").mkdir()
    prepare(_config(Data(tools=TOOLS, train=train, test=test, validation_examples=1)), tmp_path / "out")
    left, held, tested = (
        read_records(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "validation", "test")
    )
    assert (len(left), len(held), len(tested)) == (3, 1, 1)
    assert {record.id for record in left + held} == {record.id for record in read_records(train)}


def test_a_call_outside_its_schema_names_file_and_record(tmp_path: Path) -> None:
    good, bad = _file(tmp_path / "good.jsonl", "20"), _file(tmp_path / "bad.jsonl", "make it 99", celsius=99)
    data = Data(tools=TOOLS, train=good, validation=good, test=bad)
    with pytest.raises(DataError, match=r"bad\.jsonl: record make it 99: .*maximum is 30"):
        prepare(_config(data), tmp_path)
