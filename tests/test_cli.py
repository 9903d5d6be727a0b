"""The command line: help that teaches, one sentence per error, the right exit code, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import app

VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
TINY = Path(__file__).parent.parent / "configs" / "tiny.toml"


def cockpit(
    *arguments: object, cwd: Path | None = None, said: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, input=said, timeout=120
    )


def test_the_verbs_are_those_of_the_design() -> None:
    designed = (
        "advise bench build calibrate chat claims doctor export merge package report round run train validate"
    )
    assert " ".join(VERBS) == designed


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_by_example(verb: str) -> None:
    done = cockpit(verb, "--help")
    assert done.returncode == 0
    assert f"Example: cockpit {verb} " in " ".join(done.stdout.split())


def test_help_names_every_verb_and_exit_code() -> None:
    said = " ".join(cockpit("--help").stdout.split())
    assert all(verb in said for verb in VERBS)
    assert "4 a gate failed, 5 a bundle was refused" in said


def test_help_answers_without_loading_torch() -> None:
    script = "import sys, pipeline.cli; sys.exit(bool({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


ERRORS = {
    "a config that is not there": (["build", "absent.toml"], 2, "no config file at absent.toml"),
    "an unknown key": (["build", TINY, "--set", "train.learning_rat=1"], 2, 'did you mean "learning_rate"'),
    "an unknown stage": (["build", TINY, "--until", "onxx"], 2, 'no stage "onxx"; stages: base, data'),
    "a base that is not there": (["merge", "absent", "adapter", "--out", "out"], 2, "nothing at absent"),
    "a weight that is none": (
        ["merge", ".", "adapter=0", "--out", "out"],
        2,
        '"0" in "adapter=0" is no weight',
    ),
    "a size that is none": (
        ["merge", ".", "a", "--shard-size", "2", "--out", "out"],
        2,
        "--shard-size takes",
    ),
    "a checkpoint that is not there": (["export", "absent", "--out", "out"], 2, "nothing at absent"),
    "a block size that is none": (["export", ".", "--block-size", "7", "--out", "out"], 2, '"block_size"'),
    "a bundle that is not there": (["run", "absent", "hello"], 5, "absent is not a bundle"),
    "a bundle that is none": (["bench", "."], 5, "it has no bundle.json"),
    "a run without a report": (["report", "absent"], 2, "no report at"),
    "an option that does not exist": (["build", TINY, "--nonsense"], 2, "No such option"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_sentence_and_its_exit_code(name: str, tmp_path: Path) -> None:
    arguments, code, sentence = ERRORS[name]
    done = cockpit(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    done = cockpit("build", "absent.toml", "--debug")
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_doctor_reports_for_people_and_machines(tmp_path: Path) -> None:
    found = json.loads(cockpit("doctor", "--json", "--runs", tmp_path).stdout)
    subjects = {finding["subject"]: finding["status"] for finding in found}
    assert subjects["Python"] == subjects["torch"] == subjects["disk"] == "ok"
    assert "processor" in cockpit("doctor", "--runs", tmp_path).stdout


def test_run_takes_a_cache_and_a_deadline(tiny_bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    done = cockpit(
        "run", tiny_bundle, "--threads", 1, "--cache", kept, "--deadline", 600, "--json", "--", "-x"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["timing"]["new_tokens"] > 0
    assert len(list(kept.glob("*.prefix"))) == 1
    late = cockpit("run", tiny_bundle, "x", "--threads", 1, "--deadline", 1e-9)
    assert late.returncode == 1
    assert "was not there after 1e-09 s" in late.stderr


def test_chat_takes_a_cache_and_goes_on_behind_a_deadline(tiny_bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    chat = ("chat", tiny_bundle, "--threads", 1, "--cache", kept)
    done = cockpit(*chat, said="x\n\n")
    assert done.returncode == 0, done.stderr
    assert len(list(kept.glob("*.prefix"))) == 1
    late = cockpit(*chat, "--deadline", 1e-9, said="x\ny\n\n")
    assert late.returncode == 0, late.stderr
    assert late.stdout.count("was not there after 1e-09 s") == 2
