"""The real SmolLM2-135M through every stage, and a rotten copy of its bundle refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime
from pipeline.checkpoint import default_cache
from runtime.report import read_report

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parent.parent / "configs" / "tiny.toml"


def cockpit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole build by the command line: a few steps, so the answers are worth nothing, all else is real."""
    runs = tmp_path_factory.mktemp("runs")
    done = cockpit("build", CONFIG, "--runs", runs)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report.html" in done.stdout
    return runs / "tiny"


def test_the_bundle_was_admitted_on_evidence(run: Path) -> None:
    report = read_report(run / "report" / "report.json")
    assert report.gate.verdict == "pass"
    assert [hop.step.name for hop in report.parity.hops] == ["merged", "onnx", "shipped", "bundle"]
    assert all(hop.origin.positions > 500 for hop in report.parity.hops)
    assert all(hop.sites for hop in report.parity.hops[:3])
    assert report.gate.culprit is None
    assert set(report.latency.call.times) == {"unmerged", "merged", "bundle"}
    assert report.parity.rendering.different == 0
    assert (run / "bundle" / "reports" / "report.json").exists()


def test_the_device_answers_in_a_process_of_its_own(run: Path) -> None:
    script = "import sys, runtime.__main__ as m; sys.exit(m.main(sys.argv[1:]) or 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(run / "bundle"), "set the driver side to 22 degrees", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["timing"]["new_tokens"] > 0


def test_the_device_renders_real_utterances_as_training_does(run: Path) -> None:
    from transformers import AutoTokenizer

    assistant = runtime.load(run / "bundle")
    tokenizer = AutoTokenizer.from_pretrained(run / "base")
    for utterance in ("set it to 22.5°C, please", "把副驾驶车窗打开一半", "naïve café 😀 — play «Été»"):
        text = tokenizer.apply_chat_template(
            assistant.messages(utterance), add_generation_prompt=True, tokenize=False
        )
        assert assistant.prompt(utterance) == tokenizer.encode(text, add_special_tokens=False)


def test_validate_refuses_a_candidate_of_the_bare_base(run: Path, tmp_path: Path) -> None:
    """Exported without merging: nearly the same weights, and still not what was trained."""
    tools = CONFIG.parent / "cockpit-tools.json"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    _strengthen(run / "adapter", adapter)
    for step in (
        ("export", run / "base", "--precision", "int8", "--out", tmp_path / "onnx"),
        ("package", tmp_path / "onnx", "--tools", tools, "--out", tmp_path / "candidate"),
    ):
        assert cockpit(*step).returncode == 0
    where = ("--base", run / "base", "--adapter", adapter, "--data", run / "data" / "test.jsonl")
    done = cockpit(
        "validate", tmp_path / "candidate", *where, "--config", CONFIG, "--out", tmp_path / "verdict"
    )
    assert done.returncode == 4
    assert "max_mean_kl" in done.stderr
    assert read_report(tmp_path / "verdict" / "report" / "report.json").gate.verdict == "fail"


def _strengthen(adapter: Path, out: Path) -> None:
    """The adapter with its B factors scaled up: four steps leave hardly more than zeros."""
    from safetensors.numpy import load_file, save_file

    for path in adapter.iterdir():
        if path.name == "adapter_model.safetensors":
            tensors = {
                name: value * np.float32(30) if "lora_B" in name else value
                for name, value in load_file(path).items()
            }
            save_file(tensors, out / path.name, {"format": "pt"})
        elif path.name in ("adapter_config.json", "base_fingerprint.json"):
            (out / path.name).write_bytes(path.read_bytes())


def test_the_base_is_cached(run: Path) -> None:
    assert any(default_cache().rglob("*.safetensors"))
