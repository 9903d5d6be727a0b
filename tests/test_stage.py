"""The stage contract: reuse by content, one rename, nothing half-written."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.stage import RECORD, Artifact, Stage, artifact, link, locked, run_stage, write_stage
from runtime.errors import StageError, UsageError


def stage(config: object = 1, inputs: dict[str, Artifact] | None = None) -> Stage:
    return Stage("sample", "runtime.errors", ("numpy",), config, inputs or {})


class Counter:
    """Work that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, out: Path, scratch: Path) -> dict[str, int]:
        self.runs += 1
        (out / "folder").mkdir()
        (out / "folder" / "data.txt").write_text("content")
        return {"runs": self.runs}


def test_a_stage_runs_once_for_one_key_and_again_for_another(tmp_path: Path) -> None:
    work = Counter()
    with locked(tmp_path):
        first = run_stage(stage(1), tmp_path, work)
        again = run_stage(stage(1), tmp_path, work)
        other = run_stage(stage(2), tmp_path, work)
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert work.runs == 2
    assert again.figures == {"runs": 1}
    assert first.artifact == again.artifact


def test_the_same_output_under_another_config_lets_later_stages_be_reused(tmp_path: Path) -> None:
    work = Counter()
    with locked(tmp_path):
        first = run_stage(stage(1), tmp_path, work)
        second = run_stage(stage(2), tmp_path, work)
        after_first = run_stage(stage(0, {"upstream": first.artifact}), tmp_path, work)
        after_second = run_stage(stage(0, {"upstream": second.artifact}), tmp_path, work)
    assert not after_first.reused
    assert after_second.reused


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "record"])
def test_a_damaged_output_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    work = Counter()
    with locked(tmp_path):
        made = run_stage(stage(), tmp_path, work).artifact.path
        if damage == "flip":
            (made / "folder" / "data.txt").write_text("Content")
        elif damage == "remove":
            (made / "folder" / "data.txt").unlink()
        elif damage == "add":
            (made / "extra.txt").write_text("")
        else:
            (made / RECORD).write_text((made / RECORD).read_text()[:-9])
        again = run_stage(stage(), tmp_path, work)
    assert not again.reused
    assert (made / "folder" / "data.txt").read_text() == "content"
    assert not (made / "extra.txt").exists()


def test_rebuild_runs_what_could_be_reused(tmp_path: Path) -> None:
    work = Counter()
    with locked(tmp_path):
        run_stage(stage(), tmp_path, work)
        run_stage(stage(), tmp_path, work, rebuild=True)
    assert work.runs == 2


def test_a_failing_stage_leaves_nothing_and_is_not_cached(tmp_path: Path) -> None:
    def fail(out: Path, scratch: Path) -> dict[str, int]:
        (out / "half.bin").write_bytes(b"half")
        raise StageError("the stage gave up")

    work = Counter()
    with locked(tmp_path):
        with pytest.raises(StageError, match="gave up"):
            run_stage(stage(), tmp_path, fail)
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
        assert not run_stage(stage(), tmp_path, work).reused


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists; remove it"):
        write_stage(stage(), tmp_path / "out", lambda out, scratch: {})


def test_a_second_build_in_the_same_store_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another build"), locked(tmp_path):
        pass


def test_lineage_reaches_back_through_stages(tmp_path: Path) -> None:
    work = Counter()
    (tmp_path / "tools.json").write_text("[]")
    tools = artifact(tmp_path / "tools.json")
    with locked(tmp_path):
        data = run_stage(stage("data", {"tools": tools}), tmp_path, work).artifact
        adapter = run_stage(stage("adapter", {"data": data}), tmp_path, work).artifact
    assert adapter.lineage == {"data": data.digest, "tools": tools.digest}
    assert artifact(adapter.path) == adapter


def test_a_missing_input_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing at"):
        artifact(tmp_path / "absent")


def test_link_is_replaced_in_one_step_and_moves_with_its_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "which").write_text(name)
        link(tmp_path / "runs" / name, tmp_path / "runs" / "model" / "onnx")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "model" / "onnx" / "which").read_text() == "two"


SCRIPT = """
    import os, sys, time
    from pathlib import Path
    from pipeline.stage import Stage, locked, run_stage

    def work(out, scratch):
        (out / "half.bin").write_bytes(b"half")
        print("working", flush=True)
        {then}
        return {{}}

    with locked(Path(sys.argv[1])):
        run_stage(Stage("sample", "runtime.errors", ("numpy",), 1, {{}}), Path(sys.argv[1]), work)
"""


def test_kill_leaves_nothing_that_looks_whole_and_the_next_run_goes_on(tmp_path: Path) -> None:
    script = textwrap.dedent(SCRIPT).format(then="time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob(".partial-*/half.bin"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    work = Counter()
    with locked(tmp_path):
        assert not list(tmp_path.glob(".partial-*"))
        assert not run_stage(stage(), tmp_path, work).reused
    assert work.runs == 1


def test_a_file_that_cannot_grow_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A process limit stands in for a full disk: the write fails half-way with the kernel's own error."""
    script = textwrap.dedent(SCRIPT).format(then='(out / "big.bin").write_bytes(bytes(10_000_000))')
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n" + script
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "StageError: stage sample: File too large" in done.stderr
    assert [
        path.name for path in tmp_path.iterdir() if path.name != ".lock" and not path.name.startswith(".work")
    ] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so(tmp_path: Path) -> None:
    def fill(out: Path, scratch: Path) -> dict[str, int]:
        with Path("/dev/full").open("w") as full:
            full.write("more than it holds")
        return {}

    with pytest.raises(StageError, match=r"the disk is full.*free some space"):
        write_stage(stage(), tmp_path / "out", fill)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".partial-out").exists()


def test_the_record_names_every_file(tmp_path: Path) -> None:
    with locked(tmp_path):
        made = run_stage(stage(), tmp_path, Counter()).artifact.path
    record = json.loads((made / RECORD).read_text())
    assert list(record["outputs"]) == ["folder/data.txt"]
    assert record["outputs"]["folder/data.txt"]["size"] == (made / "folder" / "data.txt").stat().st_size
    assert record["libraries"]["numpy"]
