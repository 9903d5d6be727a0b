"""Several tasks from one config on a tiny random model: one switchable bundle, or a merged one for each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_build import Recorder, record

import runtime
from pipeline.build import build
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.delta import Made, delta
from pipeline.evidence.switching import switching
from pipeline.evidence.validate import validate
from pipeline.stage import artifact, write_stage
from pipeline.stages import Origin
from pipeline.task_build import BuiltTasks, build_tasks
from runtime.assistant import Assistant
from runtime.errors import ConfigError, GateError, TaskError, UsageError
from runtime.lane import Lane
from runtime.manifest import verify
from runtime.report import read_report
from runtime.tasks import Tasks, Used

ANSWERS = {
    "train": {
        "set the driver side to {} degrees": "climate_set_temperature",
        "open the rear left window {} percent": "window_set_position",
    },
    "validation": {
        "the driver side at {} degrees please": "climate_set_temperature",
        "rear left window, {} percent": "window_set_position",
    },
    "test": {
        "please turn the driver side to {} degrees": "climate_set_temperature",
        "rear left window to {} percent": "window_set_position",
    },
}
TASKS = ("climate", "windows")
SHARED_BEFORE = ["base", "data-climate", "data-windows", "adapter-climate", "adapter-windows"]
SHARED_BEHIND = [
    "onnx",
    "adapters",
    "candidate",
    "switching",
    "evidence-climate",
    "evidence-windows",
    "bundle",
]


@pytest.fixture(scope="module")
def project(tiny_checkpoint: Path, tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config of two tasks, files of both tasks' records, and tools."""
    folder = tmp_path_factory.mktemp("project")
    for split, templates in ANSWERS.items():
        lines = [
            json.dumps(record(split, number, template, name))
            for template, name in templates.items()
            for number in range(16, 31)
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
        learning_rate = 1e-2
        epochs = 2
        tokens_per_step = 256
        [export]
        precision = "fp32"
        context = 256
        [validate]
        conversations = 12
        decode_conversations = 2
        task_examples = 12
        generations = 12
        max_new_tokens = 48
        prompt_tokens = [32]
        new_tokens = 4
        latency_runs = 3
        timed_calls = 3
        own_calls = 3
        [gate]
        min_valid = 0.0
        # A tiny model on a busy machine: how fast it is says nothing.
        max_ttft_ratio = 1e6
        max_token_ratio = 1e6
        max_call_ratio = 1e6
        max_peak_ratio = 1e6
        [[task]]
        name = "climate"
        functions = ["climate_*"]
        [[task]]
        name = "windows"
        functions = ["window_*", "light_*"]
        [task.train]
        r = 4
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
def built(project: Path, runs: Path) -> tuple[BuiltTasks, Recorder]:
    recorder = Recorder()
    return build_tasks(settings(project), runs, recorder), recorder


def test_every_task_has_its_stages_and_all_one_bundle(built: tuple[BuiltTasks, Recorder], runs: Path) -> None:
    result, recorder = built
    assert recorder.ran == [*SHARED_BEFORE, *SHARED_BEHIND]
    assert {path.name for path in (runs / "tiny").iterdir()} == {*recorder.ran, "report"}
    assert result.last == runs / "tiny" / "bundle"
    assert runtime.load(result.last).tasks == TASKS


def test_a_task_is_trained_on_its_own_records(built: tuple[BuiltTasks, Recorder], runs: Path) -> None:
    for task, function in zip(TASKS, ("climate_set_temperature", "window_set_position"), strict=True):
        text = (runs / "tiny" / f"data-{task}" / "train.jsonl").read_text(encoding="utf-8")
        assert {call["name"] for line in text.splitlines() for call in json.loads(line)["calls"]} == {
            function
        }
    ranks = json.loads((runs / "tiny" / "adapters" / "stage.json").read_text())["figures"]["ranks"]
    assert ranks == {"climate": 16, "windows": 4}


def test_each_task_is_true_to_its_own_unmerged_model(built: tuple[BuiltTasks, Recorder], runs: Path) -> None:
    for task in TASKS:
        folder = runs / "tiny" / "report" / task
        assert {path.name for path in folder.iterdir()} == {"report.html", "report.json", "junit.xml"}
        report = read_report(folder / "report.json")
        assert report == built[0].reports[task]
        assert report.name == f"tiny-{task}"
        assert [hop.step.name for hop in report.parity.hops] == ["onnx", "shipped", "bundle"]
        assert all(hop.origin.relative_error.value < 1e-5 for hop in report.parity.hops)
        # Values of the switchable graph lie as rows, and its sums have the plain graph's names.
        sites = {(site.layer, site.site): site for site in report.parity.hops[0].sites}
        assert len(sites) == 2 + 2 * 8 + 1
        assert sites[(1, "attention.qkv")].operator == "Gemm"
        assert all(site.error < 1e-4 for site in sites.values())
        assert set(report.latency.footprints) == {"unmerged", "bundle"}
        (check,) = [check for check in report.gate.checks if check.name == "switching"]
        assert (check.verdict, check.value) == ("pass", 0.0)
        assert (
            report.lineage["adapter"]
            == json.loads((runs / "tiny" / "bundle" / "bundle.json").read_text())["lineage"]["recipe"][
                "tasks"
            ][task]["adapter"]
        )
    answers = [built[0].reports[task].task.answers for task in TASKS]
    assert not {answer.utterance for answer in answers[0]} & {answer.utterance for answer in answers[1]}


def test_the_tasks_differ_from_the_base_and_each_other(
    built: tuple[BuiltTasks, Recorder], runs: Path
) -> None:
    """Otherwise nothing above would show that an adapter is in use."""
    assistant = runtime.load(runs / "tiny" / "bundle")
    logits = []
    for task in (None, *TASKS):
        assistant.use(task)
        logits.append(assistant.decoder.score(assistant.prompt("set the driver side to 22 degrees")))
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(logits[left] - logits[right]).max() > 1e-2 * np.abs(logits[left]).max()


def test_the_bundle_carries_the_evidence_of_every_task(
    built: tuple[BuiltTasks, Recorder], runs: Path
) -> None:
    manifest = verify(runs / "tiny" / "bundle")
    for task in TASKS:
        for name in ("report.html", "report.json", "junit.xml"):
            assert f"reports/{task}-{name}" in manifest.files
    assert manifest.gate is not None
    names = {check.name for check in manifest.gate.checks}
    assert {f"{task}.switching" for task in TASKS} <= names
    assert {f"{task}.max_mean_kl" for task in TASKS} <= names
    assert manifest.lineage.adapter is None
    assert str(runs) not in (runs / "tiny" / "bundle" / "bundle.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("export.context=128", ["onnx", "adapters", "candidate"]),
        ("gate.min_top1=0.1", []),
        (
            "train.r=8",
            ["adapter-climate", "adapters", "candidate"],
        ),
    ],
)
def test_a_changed_key_reruns_exactly_what_it_touches(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path, override: str, rerun: list[str]
) -> None:
    recorder = Recorder()
    build_tasks(settings(project, override), runs, recorder, until="candidate")
    assert recorder.ran == rerun


def test_int8_is_calibrated_on_the_base_with_every_tasks_conversations(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path
) -> None:
    recorder = Recorder()
    config = settings(
        project,
        "export.precision=int8",
        # A tiny random model is unsure of everything; that the chain is whole is what counts here.
        "gate.max_mean_kl=1e3",
        "gate.max_p99_kl=1e3",
        "gate.max_weights_kl=1e3",
        "gate.max_activations_kl=1e3",
        "gate.max_relative_error=1e3",
        "gate.max_cache_error=1e3",
        "gate.min_top1=0.0",
        "gate.min_identical_answers=0.0",
        "gate.max_exact_call_drop=1.0",
    )
    result = build_tasks(config, runs, recorder)
    assert recorder.ran == ["calibration", *SHARED_BEHIND]
    record_of = json.loads((runs / "tiny" / "calibration" / "stage.json").read_text())
    assert set(record_of["inputs"]) == {"checkpoint", "data-climate", "data-windows"}
    for report in result.reports.values():
        names = [hop.step.name for hop in report.parity.hops]
        assert names == ["onnx", "weights_only", "shipped", "bundle"]
        assert report.parity.hops[0].origin.relative_error.value < 1e-5
        assert {check.form for check in report.parity.cache} == {"weights_only", "bundle"}
        assert all(check.relative_error < 1e-4 for check in report.parity.cache if check.form != "bundle")
    build_tasks(settings(project), runs, Recorder())
    assert not (runs / "tiny" / "calibration").exists()


def test_int4_is_rounded_on_the_base_with_every_tasks_conversations(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path
) -> None:
    recorder = Recorder()
    build_tasks(settings(project, "export.precision=int4"), runs, recorder, until="onnx")
    assert recorder.ran == ["rounding", "onnx"]
    record_of = json.loads((runs / "tiny" / "rounding" / "stage.json").read_text())
    assert set(record_of["inputs"]) == {"checkpoint", "data-climate", "data-windows"}
    assert len(record_of["figures"]["forms"]) == 9
    build_tasks(settings(project), runs, Recorder())
    assert not (runs / "tiny" / "rounding").exists()


def test_a_task_that_fails_refuses_the_bundle_and_is_named(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path, tmp_path: Path
) -> None:
    text = (project / "config.toml").read_text(encoding="utf-8")
    strict = project / "strict.toml"
    strict.write_text(text + "[task.gate]\nmin_exact_call = 1.0\n", encoding="utf-8")
    recorder = Recorder()
    with pytest.raises(
        GateError, match=r'^task "windows": .*min_exact_call .*windows/report\.html'
    ) as caught:
        build_tasks(load_config(strict), runs, recorder)
    assert caught.value.exit_code == 4
    assert '"climate"' not in str(caught.value)
    assert recorder.ran == []
    assert not (runs / "tiny" / "bundle").exists()
    verdicts = {
        task: read_report(runs / "tiny" / "report" / task / "report.json").gate.verdict for task in TASKS
    }
    assert verdicts == {"climate": "pass", "windows": "fail"}
    build_tasks(settings(project), runs, Recorder())
    assert (runs / "tiny" / "bundle" / "bundle.json").exists()


def test_an_adapter_of_another_task_is_found_out(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain compares what the bundle answers with the task's own PEFT model, not with some adapter."""

    def swapped(self: Tasks, task: str | Used | None) -> list[Lane]:
        name = self._used if isinstance(task, Used) else task
        other = {"climate": "windows", "windows": "climate"}.get(name or "", name)
        return self._lanes[None if other is None else self._adapters[other].digest]

    monkeypatch.setattr(Tasks, "_of", swapped)
    with pytest.raises(GateError) as caught:
        build_tasks(settings(project), runs, Recorder(), rebuild=frozenset({"evidence-climate"}))
    assert 'task "climate"' in str(caught.value)
    assert "max_hop_error (largest logit error, relative, shipped against onnx)" in str(caught.value)
    monkeypatch.undo()
    build_tasks(settings(project), runs, Recorder(), rebuild=frozenset({"evidence-climate"}))


def test_an_update_is_validated_in_a_copy_and_then_carries_the_evidence(
    project: Path, built: tuple[BuiltTasks, Recorder], runs: Path, tmp_path: Path
) -> None:
    """The other task's adapter under a third name: packaged, tried out, measured, packaged as proven."""
    run = runs / "tiny"
    bundle, base, adapter = (
        artifact((run / name).resolve()) for name in ("bundle", "base", "adapter-windows")
    )

    def packaged(name: str, report: Path | None) -> Path:
        made = Made(bundle, adapter, base, None if report is None else artifact(report))
        plan = delta(made, "blinds", False, "float32")
        write_stage(plan.stage, tmp_path / name, lambda out, scratch: plan.work(out, scratch, silent))
        return tmp_path / name

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    runtime.install(copy, packaged("unproven", None), unproven=True)
    config = settings(project)
    found = validate(
        config.validate_,
        config.gate,
        bundle=artifact(copy),
        origin=Origin(base, adapter, None),
        data=artifact((run / "data-windows").resolve()),
        out=tmp_path / "verdict",
        progress=silent,
        task="blinds",
    )
    assert found.gate.verdict == "pass"
    assert found.name == "tiny-blinds"
    assert [check.name for check in found.gate.checks].count("switching") == 1

    shipped = tmp_path / "shipped"
    shutil.copytree(bundle.path, shipped)
    manifest = runtime.install(shipped, packaged("proven", tmp_path / "verdict" / "report"))
    proofs = {entry.name: entry.proof for entry in manifest.adapters or ()}
    assert proofs == {"climate": "bundle", "windows": "bundle", "blinds": "own"}
    assert runtime.load(shipped, threads=1).tasks == ("blinds", "climate", "windows")


def test_validating_a_task_that_the_bundle_has_not_offers_those_it_has(
    project: Path, built: tuple[BuiltTasks, Recorder], runs: Path, tmp_path: Path
) -> None:
    run, config = runs / "tiny", settings(project)
    base, adapter, bundle, data = (
        artifact((run / name).resolve()) for name in ("base", "adapter-climate", "bundle", "data-climate")
    )
    with pytest.raises(TaskError, match='no task "radio"; the tasks of this bundle: climate, windows'):
        validate(
            config.validate_,
            config.gate,
            bundle=bundle,
            origin=Origin(base, adapter, None),
            data=data,
            out=tmp_path / "verdict",
            progress=silent,
            task="radio",
        )
    assert not (tmp_path / "verdict").exists()


# switching


def silent(message: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def assistant(built: tuple[BuiltTasks, Recorder], runs: Path) -> Assistant:
    return runtime.load(runs / "tiny" / "bundle", threads=1)


def test_switching_leaves_no_trace(assistant: Assistant) -> None:
    found = switching(assistant, ["set the driver side to 22 degrees", "rear left window"], silent)
    assert (found.tasks, found.different, found.first_difference) == (2, 0, "")
    assert found.turns >= 12


def test_an_answer_from_another_tasks_cache_is_a_difference(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = Tasks._of, []

    def astray(self: Tasks, task: str | Used | None) -> list[Lane]:
        asked.append(task)
        return plain(self, "climate" if len(asked) > 20 else task)

    monkeypatch.setattr(Tasks, "_of", astray)
    found = switching(assistant, ["set the driver side to 22 degrees"], silent)
    assert found.different > 0
    assert "after" in found.first_difference


def test_a_cache_that_keeps_a_trace_is_a_difference(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factors of the last task stay bound for the bare base, from the second time on."""
    tasks = assistant._tasks
    base, other = tasks.lane(None), tasks.lane("windows")
    plain, used = Tasks.use, []

    def use(self: Tasks, name: str | None) -> None:
        used.append(name)
        if used.count(None) > 2:
            base.decoder._one, base.decoder._many = other.decoder._one, other.decoder._many
        plain(self, name)

    monkeypatch.setattr(Tasks, "use", use)
    found = switching(assistant, ["set the driver side to 22 degrees"], silent)
    assert found.different > 0
    assert "the bare base after" in found.first_difference


# merged


def test_merged_tasks_have_a_bundle_each_and_share_what_they_can(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path
) -> None:
    recorder = Recorder()
    result = build_tasks(settings(project, "mode=merged"), runs, recorder)
    made = ("merged", "onnx", "candidate", "evidence", "bundle")
    assert recorder.ran == [f"{stage}-{task}" for task in TASKS for stage in made]
    assert {f"{stage}-{task}" for task in TASKS for stage in ("base", "data", "adapter")} <= {
        *recorder.reused
    }
    for task in TASKS:
        bundle = verify(runs / f"tiny-{task}" / "bundle")
        assert (bundle.name, bundle.adapters) == (f"tiny-{task}", None)
        assert result.reports[task].gate.verdict == "pass"


def test_a_merged_task_that_fails_does_not_stop_the_others(
    built: tuple[BuiltTasks, Recorder], project: Path, runs: Path
) -> None:
    with pytest.raises(GateError, match=r'^task "climate": .*max_load_ms.*; task "windows": .*max_load_ms'):
        build_tasks(settings(project, "mode=merged", "gate.max_load_ms=1e-6"), runs, Recorder())


# bad input


def test_functions_that_match_nothing_are_refused_before_anything_is_made(
    project: Path, tmp_path: Path
) -> None:
    text = (project / "config.toml").read_text(encoding="utf-8").replace("climate_*", "climat_*")
    (project / "wrong.toml").write_text(text, encoding="utf-8")
    recorder = Recorder()
    with pytest.raises(ConfigError, match=r'task "climate": "climat_\*" matches no function.*"climate_\*"'):
        build_tasks(load_config(project / "wrong.toml"), tmp_path, recorder)
    assert recorder.ran == []


def test_an_unknown_stage_is_refused(project: Path, runs: Path) -> None:
    with pytest.raises(UsageError, match='no stage "adapter"; stages: base, data-climate'):
        build_tasks(settings(project), runs, Recorder(), until="adapter")
    with pytest.raises(UsageError, match='no stage "calibration"'):  # float32 rounds nothing
        build_tasks(settings(project), runs, Recorder(), until="calibration")
    with pytest.raises(UsageError, match='no stage "adapters"; stages: base, data, adapter'):
        build_tasks(settings(project, "mode=merged"), runs, Recorder(), until="adapters")


def test_a_build_of_one_model_takes_no_tasks(project: Path, runs: Path) -> None:
    with pytest.raises(UsageError, match="several tasks"):
        build(settings(project), runs, Recorder())
