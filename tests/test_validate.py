"""Real bundles broken in real ways: each is refused by the gate meant for it, the unbroken one passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import runtime
from export.bundle import Description, package
from export.checkpoint import export_checkpoint
from pipeline.config import Gate, Validate
from pipeline.data.records import Record
from pipeline.evidence.gate import judge
from pipeline.evidence.measure import measure_fidelity
from pipeline.evidence.reference import Unmerged
from pipeline.merge import merge
from runtime.calls import Call
from runtime.errors import InferenceError
from runtime.report import Distribution, Estimate, GateReport, LatencyPoint, LatencyReport, Machine

CONTEXT = 256
SETTINGS = Validate(conversations=6, decode_conversations=2, task_examples=4, max_new_tokens=24)
RECORDS = [
    Record(
        f"r{celsius}",
        f"set the driver side to {celsius} degrees",
        (Call("climate_set_temperature", {"zone": "driver", "celsius": celsius}),),
        "en",
    )
    for celsius in range(18, 24)
]


def silent(message: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes the model visibly."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
        LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        ),
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(tiny_checkpoint: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    merge(tiny_checkpoint, adapter, folder, silent)
    return folder


@pytest.fixture(scope="module")
def judged(tiny_checkpoint: Path, adapter: Path) -> Callable[[Path], GateReport]:
    """The verdict on a bundle, its latency taken as good."""
    reference = Unmerged(tiny_checkpoint, adapter, threads=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    time, faster = Distribution(3, 1.0, 1.0, 1.0), Estimate(0.5, 0.5, 0.5)
    point = LatencyPoint(32, 4, {"bundle": time}, {"bundle": time}, {"bundle": faster}, {"bundle": faster})
    latency = LatencyReport(Machine("", 2, (), "", 0, {}), 2, (point,), {})

    def verdict(bundle: Path) -> GateReport:
        assistant = runtime.load(bundle)
        parity, task = measure_fidelity(SETTINGS, assistant, reference, tokenizer, RECORDS, silent)
        return judge("fp32", Gate(), parity, task, latency)

    return verdict


@pytest.fixture
def bundled(tiny_tools_file: Path, tiny_description: Description, tmp_path: Path) -> Callable[[Path], Path]:
    """Export a checkpoint in float32 and package it."""

    def make(checkpoint: Path, change: Callable[[Path], None] = lambda exported: None) -> Path:
        exported, bundle = tmp_path / "exported", tmp_path / "bundle"
        exported.mkdir()
        export_checkpoint(checkpoint, exported, "fp32", 32, CONTEXT, silent)
        change(exported)
        package(exported, bundle, tiny_tools_file, tiny_description)
        return bundle

    return make


def failed(report: GateReport) -> set[str]:
    return {check.name for check in report.checks if check.verdict == "fail"}


def test_the_unbroken_bundle_passes(
    judged: Callable[[Path], GateReport], bundled: Callable[[Path], Path], merged: Path
) -> None:
    report = judged(bundled(merged))
    assert report.verdict == "pass", failed(report)


def test_a_base_that_was_never_merged_is_refused(
    judged: Callable[[Path], GateReport], bundled: Callable[[Path], Path], tiny_checkpoint: Path
) -> None:
    assert {"max_relative_error", "max_mean_kl", "max_p99_kl", "min_top1"} <= failed(
        judged(bundled(tiny_checkpoint))
    )


def test_a_scale_off_by_two_is_refused(
    judged: Callable[[Path], GateReport],
    bundled: Callable[[Path], Path],
    tiny_checkpoint: Path,
    adapter: Path,
    tmp_path: Path,
) -> None:
    doubled, wrong = tmp_path / "doubled", tmp_path / "wrong"
    shutil.copytree(adapter, doubled)
    config = json.loads((doubled / "adapter_config.json").read_text())
    (doubled / "adapter_config.json").write_text(
        json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]})
    )
    wrong.mkdir()
    merge(tiny_checkpoint, doubled, wrong, silent)
    assert {"max_relative_error", "max_mean_kl"} <= failed(judged(bundled(wrong)))


@pytest.mark.parametrize(
    ("key", "value"), [("rope_theta", 500.0), ("rms_norm_eps", 0.1)], ids=["rope base", "norm epsilon"]
)
def test_a_wrong_config_beside_right_weights_is_refused(
    judged: Callable[[Path], GateReport],
    bundled: Callable[[Path], Path],
    merged: Path,
    tmp_path: Path,
    key: str,
    value: float,
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(merged, wrong)
    config = json.loads((wrong / "config.json").read_text())
    if key in config.get("rope_parameters", {}):
        config["rope_parameters"][key] = value
    else:
        config[key] = value
    (wrong / "config.json").write_text(json.dumps(config))
    assert "max_relative_error" in failed(judged(bundled(wrong)))


def test_a_chat_template_longer_by_a_newline_is_refused_for_its_rendering(
    judged: Callable[[Path], GateReport], bundled: Callable[..., Path], merged: Path
) -> None:
    def change(exported: Path) -> None:
        template = exported / "chat_template.jinja"
        template.write_text(
            template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant\n\n")
        )

    assert failed(judged(bundled(merged, change))) == {"rendering"}


def test_a_few_changed_weights_are_refused(
    judged: Callable[[Path], GateReport], bundled: Callable[..., Path], merged: Path
) -> None:
    def change(exported: Path) -> None:
        weights = np.fromfile(exported / "model.onnx.data", np.float32)
        weights[-64 * 128 :] *= np.float32(1.05)
        weights.tofile(exported / "model.onnx.data")

    assert "max_relative_error" in failed(judged(bundled(merged, change)))


def test_weights_that_are_not_numbers_stop_the_measurement(
    judged: Callable[[Path], GateReport], bundled: Callable[..., Path], merged: Path
) -> None:
    def change(exported: Path) -> None:
        weights = np.fromfile(exported / "model.onnx.data", np.float32)
        weights[-64 * 128 :] = np.nan
        weights.tofile(exported / "model.onnx.data")

    with pytest.raises(InferenceError):
        judged(bundled(merged, change))
