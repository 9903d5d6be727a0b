"""The whole path on a tiny random model: every stage, reuse by content, and refusal at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest

import runtime
from pipeline.build import STAGES, Built, build
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.stage import StageResult
from pipeline.training.loading import qlora_obstacle
from runtime.errors import GateError, UsageError
from runtime.manifest import verify
from runtime.report import Report, read_report

ANSWERS = {
    "train": {
        "set the driver side to {} degrees": "climate_set_temperature",
        "open the rear left window {} percent": "window_set_position",
    },
    "validation": {"the driver side at {} degrees please": "climate_set_temperature"},
    "test": {
        "please turn the driver side to {} degrees": "climate_set_temperature",
        "rear left window to {} percent": "window_set_position",
    },
}


RUN = tuple(stage for stage in STAGES if stage not in ("calibration", "rounding"))
"""Stages of a build in float32, which rounds nothing."""


class Recorder:
    """An observer that remembers which stages ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.reused: list[str] = []
        self.report: Report | None = None

    def started(self, stage: str) -> Callable[[str, int, int], None]:
        return lambda message, done, total: None

    def finished(self, stage: str, result: StageResult) -> None:
        (self.reused if result.reused else self.ran).append(stage)

    def judged(self, report: Report, folder: Path) -> None:
        self.report = report


def record(split: str, number: int, template: str, name: str) -> dict[str, object]:
    arguments: Mapping[str, object] = (
        {"zone": "driver", "celsius": number}
        if name == "climate_set_temperature"
        else {"window": "rear_left", "percent": number}
    )
    return {
        "id": f"{split}-{name}-{number}",
        "utterance": template.format(number),
        "calls": [{"name": name, "arguments": arguments}],
        "lang": "en",
    }


@pytest.fixture(scope="module")
def project(tiny_checkpoint: Path, tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, data files and tools, and the tiny checkpoint as its base."""
    folder = tmp_path_factory.mktemp("project")
    for split, templates in ANSWERS.items():
        lines = [
            json.dumps(record(split, number, template, name))
            for template, name in templates.items()
            for number in range(16, 31, 1 if split == "train" else 2)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copyfile(tiny_tools_file, folder / "tools.json")
    (folder / "config.toml").write_text(
        f"""
        name = "tiny"
        [base]
        source = "path"
        path = "{tiny_checkpoint}"
        [data]
        tools = "tools.json"
        train = "train.jsonl"
        validation = "validation.jsonl"
        test = "test.jsonl"
        [train]
        learning_rate = 2e-3
        epochs = 2
        tokens_per_step = 256
        [export]
        precision = "fp32"
        context = 256
        [validate]
        conversations = 12
        decode_conversations = 2
        task_examples = 12
        max_new_tokens = 48
        prompt_tokens = [32]
        new_tokens = 4
        latency_runs = 3
        [gate]
        min_valid = 0.0
        # A tiny model on a busy machine: how fast it is says nothing.
        max_ttft_ratio = 1e6
        max_token_ratio = 1e6
        max_call_ratio = 1e6
        """,
        encoding="utf-8",
    )
    return folder


def settings(project: Path, *overrides: str) -> Config:
    return load_config(project / "config.toml", overrides)


@pytest.fixture(scope="module")
def runs(project: Path) -> Path:
    return project / "runs"


@pytest.fixture(scope="module")
def built(project: Path, runs: Path) -> tuple[Built, Recorder]:
    recorder = Recorder()
    return build(settings(project), runs, recorder), recorder


def test_a_qlora_build_is_true_to_the_model_with_4_bit_weights(project: Path, tmp_path: Path) -> None:
    """Merged onto the weights it was trained beside, which is measured, and judged against them."""
    if obstacle := qlora_obstacle("cpu"):
        pytest.skip(obstacle.reason)
    result = build(settings(project, "train.method=qlora"), tmp_path, Recorder())
    merged = json.loads((tmp_path / "tiny" / "merged" / "stage.json").read_text())["figures"]
    assert merged["onto"] == "nf4"
    apart = {onto: found["kl_mean"] for onto, found in merged["from_unmerged"].items()}
    assert apart["nf4"] < 1e-9
    assert apart["base"] > 1e-4
    assert result.report is not None
    assert result.report.gate.verdict == "pass"
    assert result.report.parity.hops[0].origin.relative_error.value < 1e-5


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.method=dora",),
        ("train.method=adalora", "train.r=4", "train.adalora_tinit=0.0"),
        ('train.modules_to_save=["lm_head", "model.norm"]', "train.dtype=float32"),
    ],
    ids=["dora", "adalora", "whole modules"],
)
def test_what_any_method_trained_is_what_ships(
    project: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    result = build(settings(project, *overrides), tmp_path, Recorder())
    assert result.report is not None
    assert result.report.gate.verdict == "pass"
    assert all(hop.origin.relative_error.value < 1e-4 for hop in result.report.parity.hops)


def test_a_build_leaves_every_stage_and_an_admitted_bundle(built: tuple[Built, Recorder], runs: Path) -> None:
    result, recorder = built
    assert tuple(recorder.ran) == RUN
    assert {path.name for path in (runs / "tiny").iterdir()} == {*RUN, "report"}
    assert {path.name for path in (runs / "tiny" / "report").iterdir()} == {
        "report.html",
        "report.json",
        "junit.xml",
    }
    assert result.report == recorder.report == read_report(runs / "tiny" / "report" / "report.json")
    assert result.report is not None
    assert result.report.gate.verdict == "pass"


def test_the_bundle_says_where_it_comes_from(built: tuple[Built, Recorder], runs: Path) -> None:
    manifest = verify(runs / "tiny" / "bundle")
    stages = built[0].stages
    assert manifest.gate is not None
    assert manifest.lineage.base == stages["base"].figures["fingerprint"]
    assert manifest.lineage.adapter == stages["adapter"].artifact.digest
    assert manifest.lineage.dataset == stages["data"].artifact.digest
    assert str(runs) not in (runs / "tiny" / "bundle" / "bundle.json").read_text(encoding="utf-8")


def test_the_bundle_answers(built: tuple[Built, Recorder], runs: Path) -> None:
    result = runtime.load(runs / "tiny" / "bundle").call(
        "set the driver side to 20 degrees", max_new_tokens=96
    )
    assert result.timing.new_tokens > 0


def test_nothing_runs_twice(built: tuple[Built, Recorder], project: Path, runs: Path) -> None:
    again = Recorder()
    build(settings(project), runs, again)
    assert again.ran == []
    assert tuple(again.reused) == RUN


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("export.context=128", ["onnx", "candidate"]),
        ('data.system="Other words."', ["adapter", "merged", "onnx", "candidate"]),
        ("train.r=4", ["adapter", "merged", "onnx", "candidate"]),
        ("validate.conversations=4", []),
        ('export.precision="int8"', ["calibration", "onnx", "candidate"]),
        ('export.precision="int4"', ["rounding", "onnx", "candidate"]),
    ],
)
def test_a_changed_key_reruns_exactly_what_it_touches(
    built: tuple[Built, Recorder], project: Path, runs: Path, override: str, rerun: list[str]
) -> None:
    recorder = Recorder()
    build(settings(project, override), runs, recorder, until="candidate")
    assert recorder.ran == rerun


def test_int4_tells_what_becomes_of_the_adapter_s_update(
    built: tuple[Built, Recorder], project: Path, runs: Path
) -> None:
    build(settings(project, 'export.precision="int4"'), runs, Recorder(), until="rounding")
    record = json.loads((runs / "tiny" / "rounding" / "stage.json").read_text(encoding="utf-8"))
    assert set(record["inputs"]) == {"checkpoint", "data", "base", "adapter"}
    apart = record["figures"]["apart"]
    assert apart
    assert apart.keys() <= record["figures"]["forms"].keys()
    for norms in apart.values():
        assert 0 < norms["update_error"] < norms["error"] < norms["weight"]


@pytest.mark.parametrize(
    ("precision", "measured"), [("int8", {"calibration"}), ("int4", {"calibration", "rounding"})]
)
def test_caches_in_int8_are_calibrated(
    precision: str, measured: set[str], built: tuple[Built, Recorder], project: Path, runs: Path
) -> None:
    chosen = ("export.kv_cache=int8", "export.calibration_conversations=8")
    made = build(
        settings(project, f"export.precision={precision}", *chosen), runs, Recorder(), until="onnx"
    ).stages
    assert measured == made.keys() & {"calibration", "rounding"}
    graph = onnx.load(made["onnx"].artifact.path / "model.onnx", load_external_data=False).graph
    kinds = {value.type.tensor_type.elem_type for value in graph.input if value.name.startswith("past")}
    assert kinds == {onnx.TensorProto.INT8}


def test_a_flipped_byte_is_noticed_and_only_that_stage_is_made_again(
    built: tuple[Built, Recorder], project: Path, runs: Path
) -> None:
    weights = runs / "tiny" / "merged" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    recorder = Recorder()
    build(settings(project), runs, recorder, until="onnx")
    assert recorder.ran == ["merged"]


def test_rebuild_runs_a_stage_again(built: tuple[Built, Recorder], project: Path, runs: Path) -> None:
    recorder = Recorder()
    build(settings(project), runs, recorder, until="data", rebuild=frozenset({"data"}))
    assert recorder.ran == ["data"]


def test_a_failed_gate_leaves_no_bundle_but_all_the_evidence(
    built: tuple[Built, Recorder], project: Path, runs: Path
) -> None:
    recorder = Recorder()
    with pytest.raises(GateError, match=r"max_token_ratio .*report\.html") as caught:
        build(settings(project, "gate.max_token_ratio=1e-9"), runs, recorder)
    assert caught.value.exit_code == 4
    assert recorder.ran == []
    assert not (runs / "tiny" / "bundle").exists()
    assert read_report(runs / "tiny" / "report" / "report.json").gate.verdict == "fail"
    build(settings(project), runs, Recorder())
    assert (runs / "tiny" / "bundle" / "bundle.json").exists()


def test_an_unknown_stage_is_refused(project: Path, runs: Path) -> None:
    with pytest.raises(UsageError, match='no stage "onxx"'):
        build(settings(project), runs, Recorder(), until="onxx")
