"""What benchmarks/speed.py makes of several sets of utterances; nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import speed_calls
import speed_chart
from speed_contenders import Called, CallTask

from pipeline.evidence.contender import Reply
from runtime.timing import Timing


def utterances(folder: Path, said: list[str]) -> Path:
    folder.mkdir()
    file = folder / "validation.jsonl"
    file.write_text("".join(json.dumps({"utterance": text}) + "\n" for text in said), encoding="utf-8")
    return file


def test_every_set_is_asked_in_turn_and_spread_over_its_file(tiny_bundle: Path, tmp_path: Path) -> None:
    english = utterances(tmp_path / "english", [f"set it to {number} degrees" for number in range(16, 28)])
    chinese = utterances(tmp_path / "chinese", ["打开天窗", "关闭天窗"])
    tasks = speed_calls.call_tasks(tiny_bundle, speed_calls.spread([english, chinese], 4))
    assert [(task.source, task.utterance) for task in tasks] == [
        ("english", "set it to 16 degrees"),
        ("chinese", "打开天窗"),
        ("english", "set it to 19 degrees"),
        ("chinese", "关闭天窗"),
        ("english", "set it to 22 degrees"),
        ("english", "set it to 25 degrees"),
    ]
    assert all(task.utterance in task.prompt and task.prompt_tokens > 0 for task in tasks)


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [utterances(folder / "set", ["stop"]) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(SystemExit, match="one name, rename the folders: set"):
        speed_calls.spread(files, 1)
    whole = utterances(tmp_path / speed_calls.TOGETHER, ["stop"])
    with pytest.raises(SystemExit, match="one name, rename the folders: together"):
        speed_calls.spread([files[0], whole], 1)


TASKS = [CallTask(source, source, "", 1, 1) for source in ("en", "zh", "en", "zh", "en")]


def ours(ms: float, runs: int) -> Called:
    timing = Timing(30, 10 * runs, 1.0, ms, 0, runs, 0.2 * ms, 0.7 * ms, 0.09 * ms, 0.01 * ms)
    return Called(ms, reply=Reply((ms,), 1, timing))


OURS = [ours(40.0, 4), ours(100.0, 10), ours(50.0, 6), ours(120.0, 16), ours(60.0, 5)]
PEER = [Called(ms) for ms in (120.0, 150.0, 100.0, 240.0, 240.0)]


def test_calls_are_told_set_by_set_and_together() -> None:
    found, peer = speed_calls.by_set(TASKS, OURS, None), speed_calls.by_set(TASKS, PEER, OURS)
    assert list(found) == list(peer) == ["en", "zh", "together"]
    assert {name: (calls.count, calls.p50_ms) for name, calls in found.items()} == {
        "en": (3, 50.0),
        "zh": (2, 110.0),
        "together": (5, 60.0),
    }
    # Ratios are within a call: 3, 2, 4 times as fast; 1.5 and 2.
    assert {name: calls.ratio for name, calls in peer.items()} == {"en": 3.0, "zh": 1.75, "together": 2.0}
    assert {calls.ratio for calls in found.values()} == {None}
    assert peer["en"].own is None
    own = found["zh"].own
    assert own is not None
    assert (own.runs, own.new_tokens) == (13.0, 130.0)
    assert (own.prefill_ms, own.decode_ms) == pytest.approx((22.0, 77.0))


def test_one_set_is_not_told_twice() -> None:
    assert list(speed_calls.by_set(TASKS[::2], OURS[::2], None)) == ["en"]
    assert speed_calls.by_set([], [], None) == {}


def test_the_table_and_the_chart_have_every_set(tmp_path: Path) -> None:
    calls = {
        "ours int8": speed_calls.by_set(TASKS, OURS, None),
        "llama.cpp q8_0": speed_calls.by_set(TASKS, PEER, OURS),
    }
    lines = list(speed_calls.table(calls))
    assert [line.split()[:3] for line in lines if line.startswith("\n")] == [
        ["3", "calls,", "en"],
        ["2", "calls,", "zh"],
        ["5", "calls,", "together"],
    ]
    assert "  50.0" in lines[1]
    assert "5.0, 50.0; 20.0 %, 70.0 %, 9.0 %, 1.0 % of 50.0 ms" in lines[1]
    assert lines[2].split() == ["llama.cpp", "q8_0", "120.0", "3.00", "228.0"]
    figures = {"prefill": 4000.0, "decode": 180.0, "load_ms": 300.0, "peak_bytes": 4e8}
    speed_chart.draw(tmp_path / "speed.svg", dict.fromkeys(calls, figures), calls, "here")
    drawn = (tmp_path / "speed.svg").read_text(encoding="utf-8")
    assert drawn.count('class="heading"') == 6
    assert ">one call, zh, median, ms: less is better</text>" in drawn
    assert "together" not in drawn
    bare = dict.fromkeys(calls, speed_calls.by_set([], [], None))
    assert list(speed_calls.table(bare)) == []
    speed_chart.draw(tmp_path / "bare.svg", dict.fromkeys(calls, figures), bare, "here")
    assert (tmp_path / "bare.svg").read_text(encoding="utf-8").count('class="heading"') == 4
