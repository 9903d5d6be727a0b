"""`python -m runtime` as a person meets it: output, exit codes, and one sentence when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.__main__ import EXAMPLES, main

ROOT = Path(__file__).parent.parent
Output = pytest.CaptureFixture[str]


def test_an_utterance_becomes_calls(tiny_bundle: Path, capsys: Output) -> None:
    assert main([str(tiny_bundle), "x", "--json", "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"calls", "text", "timing"}
    assert set(result["timing"]) == {
        "prompt_tokens", "new_tokens", "ttft_ms", "total_ms", "prefix_tokens",
        "decode_runs", "prefill_ms", "decode_ms", "grammar_ms", "python_ms",
    }  # fmt: skip
    assert json.loads(result["text"]) == result["calls"]


def test_the_same_for_a_person(tiny_bundle: Path, capsys: Output) -> None:
    assert main([str(tiny_bundle), "x", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "prompt tokens" in printed.err
    assert re.search(
        r"prefill [\d.]+, decode [\d.]+ in \d+ runs, grammar [\d.]+, Python [\d.]+$", printed.err.strip()
    )


def test_a_deadline_and_a_folder_for_the_prefix(tiny_bundle: Path, tmp_path: Path, capsys: Output) -> None:
    asked = [str(tiny_bundle), "x", "--threads", "1", "--cache", str(tmp_path / "cache")]
    assert main([*asked, "--deadline", "600"]) == 0
    assert len(list((tmp_path / "cache").glob("*.prefix"))) == 1
    capsys.readouterr()
    assert main([*asked, "--deadline", "1e-9"]) == 1
    assert "was not there after 1e-09 s" in capsys.readouterr().err


def test_verify(tiny_bundle: Path, capsys: Output) -> None:
    assert main([str(tiny_bundle), "--verify"]) == 0
    assert "a candidate, not admitted" in capsys.readouterr().out
    assert main([str(tiny_bundle), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["admitted"] is False


def test_bench(tiny_bundle: Path, capsys: Output) -> None:
    counts = ["--prompt-tokens", "8", "--new-tokens", "2", "--runs", "1", "--threads", "1"]
    assert main([str(tiny_bundle), "--bench", *counts]) == 0
    assert "first token, ms" in capsys.readouterr().out
    assert main([str(tiny_bundle), "--bench", "--json", *counts]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 8


def test_a_damaged_bundle_exits_5_and_lists_the_damage(
    tiny_bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tools.json").unlink()
    (bundle / "more").write_text("x", encoding="utf-8")
    for arguments in (["x"], ["--verify"], ["--bench"]):
        assert main([str(bundle), *arguments]) == 5
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "tools.json is missing" in printed.err
        assert "more is not listed" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--help has examples"),
        (["x", "--verify"], "--help has examples"),
        (["", "--threads", "1"], "the utterance is empty"),
        (["<|im_end|>", "--threads", "1"], "control token"),
        (["x " * 300, "--threads", "1"], "the context holds 256"),
        (["x", "--threads", "0"], "threads must be 1 to"),
        (["x", "--threads", "1", "--max-new-tokens", "1"], "cut off"),
        (["x", "--threads", "1", "--max-new-tokens", "8", "--unconstrained"], "valid"),
    ],
)
def test_wrong_usage_exits_2_with_one_sentence(
    tiny_bundle: Path, capsys: Output, arguments: list[str], said: str
) -> None:
    assert main([str(tiny_bundle), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_no_bundle_there(tmp_path: Path, capsys: Output) -> None:
    assert main([str(tmp_path / "absent"), "x"]) == 5
    assert "is not a bundle" in capsys.readouterr().err


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from runtime.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'jinja2', 'llguidance'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert shown.returncode == 0, shown.stderr
    assert EXAMPLES.splitlines()[1] in shown.stdout
