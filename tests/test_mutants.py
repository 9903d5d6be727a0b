"""The gates bite: every way of breaking the pipeline is refused by the gate meant for it, naming the hop.

docs/mutants.md is the table of what is found here; COCKPIT_WRITE_MUTANTS=1 writes it anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import runtime
from export.bundle import Description, package
from export.checkpoint import export_checkpoint
from export.kv_cache import KvCache
from pipeline.calibrate import calibrate
from pipeline.config import Gate, Validate
from pipeline.data.records import Record
from pipeline.evidence.gate import judge
from pipeline.evidence.measure import Model, measure, measure_fidelity
from pipeline.merge import merge
from pipeline.quiet import quiet_transformers
from pipeline.training.record import TRAINING
from runtime.calls import Call
from runtime.errors import InferenceError, UsageError
from runtime.report import (
    CallLatency,
    Check,
    Footprint,
    GateReport,
    LatencyPoint,
    LatencyReport,
    Machine,
    distribution,
)
from runtime.report import Estimate as Figure
from tests.mutants import MUTANTS, Mutant, copied

ROOT = Path(__file__).parent.parent
CONTEXT = 256
SETTINGS = Validate(
    conversations=12, decode_conversations=3, task_examples=12, generations=10, max_new_tokens=16
)
RECORDS = [
    Record(
        f"r{celsius}",
        f"set the driver side to {celsius} degrees",
        (Call("climate_set_temperature", {"zone": "driver", "celsius": celsius}),),
        "en",
    )
    for celsius in range(17, 29)
]
WORTHLESS = {"min_valid": 0.0, "min_identical_answers": 0.0}
"""The tiny model is random: what it answers is worth nothing, and ends where it is cut off."""
ROUNDED = {"max_relative_error": 2.0, "max_p99_kl": 10.0, "min_top1": 0.0}
GATES = {
    "fp32": Gate(**WORTHLESS),
    "int8": Gate(**WORTHLESS, **ROUNDED, max_weights_kl=0.015, max_mean_kl=0.02),
    "int4": Gate(**WORTHLESS, **ROUNDED, max_weights_kl=1.5, max_mean_kl=1.5),
}
"""Random weights suffer from rounding far more than trained ones; all that is no rounding is held to the
defaults."""
CALIBRATED = GATES["int8"].model_copy(update={"max_cache_error": 0.1})
"""Rounded as a whole, a prefill and single tokens differ by rounding alone, here by 0.066 where the trained
default model shows 0.037. Its cache is held to the default with float activations."""
FASTER, TIME = Figure(0.5, 0.5, 0.5, 10), distribution([1.0, 1.0])
LATENCY = LatencyReport(
    Machine("", 2, (), "", 0, {}),
    2,
    (LatencyPoint(32, 4, {"bundle": TIME}, {"bundle": TIME}, {"bundle": FASTER}, {"bundle": FASTER}),),
    CallLatency(10, {"bundle": TIME}, {"bundle": FASTER}),
    {},
    {"unmerged": Footprint(1.0, 2), "bundle": Footprint(1.0, 1)},
)
FOUND: dict[str, GateReport] = {}


def silent(message: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def adapter(
    tiny_checkpoint: Path, tiny_description: Description, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A LoRA adapter that changes the model visibly, and says what it was trained with."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    with quiet_transformers():
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
            LoraConfig(
                r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
            ),
        )
    model.save_pretrained(folder)
    (folder / TRAINING).write_text(json.dumps({"system": tiny_description.system}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def training(tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder to calibrate on."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copyfile(tiny_tools_file, folder / "tools.json")
    lines = [
        {
            "id": record.id,
            "utterance": record.utterance,
            "lang": record.lang,
            "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in record.calls],
        }
        for record in RECORDS
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return folder


Judged = Callable[[Mutant, Path], GateReport]


@pytest.fixture
def judged(
    tiny_checkpoint: Path,
    adapter: Path,
    training: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    monkeypatch: pytest.MonkeyPatch,
) -> Judged:
    """Merge, export, package and judge, with a mutant's change at its place."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)

    def verdict(mutant: Mutant, folder: Path) -> GateReport:
        merged = folder / "merged"
        merged.mkdir()
        merge(tiny_checkpoint, copied(adapter, folder / "adapter", mutant.adapter), merged, silent)
        if mutant.merged:
            mutant.merged(merged)
        if mutant.exporting:
            mutant.exporting(monkeypatch)
        exported, bundle, scratch = (folder / name for name in ("exported", "bundle", "scratch"))
        exported.mkdir()
        scratch.mkdir()
        source = copied(merged, folder / "other", mutant.exported_from)
        calibration = None
        if mutant.calibrated:
            calibration = folder / "calibration"
            calibration.mkdir()
            calibrate(source, [training], tiny_description.system, len(RECORDS), calibration, silent)
        export_checkpoint(
            source, exported, mutant.precision, 32, CONTEXT, silent, calibration, kv_cache=mutant.kv_cache
        )
        if mutant.exported:
            mutant.exported(exported)
        description = dataclasses.replace(tiny_description, precision=mutant.precision)
        if mutant.packaged:
            description = mutant.packaged(description)
        package(exported, bundle, tiny_tools_file, description)
        assistant = runtime.load(bundle)
        if mutant.running:
            mutant.running(monkeypatch)
        model = Model(tiny_checkpoint, tiny_checkpoint, adapter, merged)
        parity, task = measure_fidelity(
            SETTINGS, assistant, bundle, model, tokenizer, RECORDS, scratch, silent
        )
        gate = CALIBRATED if mutant.calibrated else GATES[mutant.precision]
        return judge(mutant.precision, gate, parity, task, LATENCY)

    return verdict


def missed(report: GateReport) -> list[Check]:
    return [check for check in report.checks if check.verdict != "pass"]


@pytest.mark.parametrize(
    ("precision", "calibrated", "kv_cache"),
    [
        ("fp32", False, "float"),
        ("int8", False, "float"),
        ("int8", True, "float"),
        ("int8", True, "int8"),
        ("int4", False, "float"),
    ],
)
def test_the_unbroken_bundle_passes(
    precision: str, calibrated: bool, kv_cache: KvCache, judged: Judged, tmp_path: Path
) -> None:
    whole = Mutant("nothing", "", "", precision=precision, calibrated=calibrated, kv_cache=kv_cache)
    report = judged(whole, tmp_path)
    assert report.verdict == "pass", missed(report)
    assert report.culprit is None


def test_the_unbroken_bundle_passes_every_time(judged: Judged, tmp_path: Path) -> None:
    for time in range(20):
        folder = tmp_path / str(time)
        folder.mkdir()
        report = judged(Mutant("nothing", "", ""), folder)
        assert report.verdict == "pass", missed(report)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_one_is_refused_by_the_gate_meant_for_it(
    mutant: Mutant, judged: Judged, tmp_path: Path
) -> None:
    report = FOUND[mutant.name] = judged(mutant, tmp_path)
    assert report.verdict == "fail"
    assert mutant.check in {check.name for check in report.checks if check.verdict == "fail"}
    assert (report.culprit.hop if report.culprit else "") == mutant.hop
    if mutant.site:
        assert report.culprit is not None
        assert report.culprit.site is not None
        assert (report.culprit.site.layer, report.culprit.site.site) == mutant.site


def test_the_reference_may_compute_in_float64(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_mutants.SETTINGS", SETTINGS.model_copy(update={"reference": "float64"}))
    assert judged(Mutant("nothing", "", "", precision="fp32"), tmp_path).verdict == "pass"


def test_a_bundle_and_a_base_that_do_not_belong_together(
    tiny_bundle: Path, tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text("", encoding="utf-8")
    model = Model(tiny_checkpoint, tiny_checkpoint, adapter, tiny_checkpoint)
    with pytest.raises(UsageError, match="do not belong together"):
        measure(SETTINGS, tiny_bundle, {}, model, data, tmp_path, tmp_path, silent)


def test_numbers_that_are_none_stop_the_measurement(judged: Judged, tmp_path: Path) -> None:
    def change(exported: Path) -> None:
        data = exported / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-256] + b"\xff" * 256)

    with pytest.raises(InferenceError):
        judged(Mutant("not numbers", "", "", precision="fp32", exported=change), tmp_path)


def test_the_table_of_mutants_is_what_was_found() -> None:
    if len(FOUND) < len(MUTANTS):
        pytest.skip("needs the verdicts of all mutants: run the whole file")
    assert len(MUTANTS) >= 25
    rows = [
        "| broken | refused by | the report names |",
        "|---|---|---|",
        *(f"| {mutant.name} | `{mutant.check}` | {named(FOUND[mutant.name])} |" for mutant in MUTANTS),
    ]
    path = ROOT / "docs" / "mutants.md"
    before, marker, _ = path.read_text(encoding="utf-8").partition("<!-- generated -->\n")
    text = before + marker + "\n".join(rows) + "\n"
    if os.environ.get("COCKPIT_WRITE_MUTANTS"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def named(report: GateReport) -> str:
    """What a person is told to look at."""
    culprit = report.culprit
    if culprit is None:
        return "the check"
    if culprit.site is None:
        return f"`{culprit.hop}`"
    layer = "" if culprit.site.layer is None else f"layer {culprit.site.layer}, "
    return f"`{culprit.hop}`, {layer}`{culprit.site.site}`"
