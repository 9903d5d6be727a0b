"""`cockpit advise` on a tiny base: every figure is measured, and what follows follows from the figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import sample_report
from rich.console import Console
from test_build import project as project  # a fixture
from test_report_html import Page

from export.calibration import ACTIVATIONS
from export.rounded import ROUNDED
from pipeline import cli
from pipeline.advise.advice import FILE, Advice, Setting, TaskAdapter, advice_of
from pipeline.advise.bundles import Bundles, write_bundles
from pipeline.advise.compare import advise, break_even
from pipeline.advise.contender import Ready, Times
from pipeline.advise.measure import Measured, measure
from pipeline.advise.page import page, table
from pipeline.advise.record import record
from pipeline.advise.text import UNMEASURED, reasons
from pipeline.claims import guide
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.evidence.admission import write_report
from pipeline.evidence.latency import this_machine
from pipeline.evidence.report.html import draw
from pipeline.stage import Progress
from runtime.errors import ConfigError, StageError, UsageError
from runtime.manifest import verify
from runtime.report import Report, from_json, to_json
from runtime.sites import read_adapter_record

TASKS = """
[[task]]
name = "climate"
functions = ["climate_*"]
train = {r = 2, target_modules = ["q_proj", "v_proj"]}
[[task]]
name = "window"
functions = ["window_*"]
train = {r = 4, rank_pattern = {down_proj = 8}}
"""
ONE = '[[task]]\nname = "climate"\nfunctions = ["climate_*"]\ntrain = {r = 2}\n'
SETTING = Setting("car", this_machine(), "int8", 2048, 2, 256, 16, "0" * 64)


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def with_tasks(project: Path, tasks: str, *overrides: str) -> Config:
    text = (project / "config.toml").read_text(encoding="utf-8").replace("        ", "")
    file = project / "advise.toml"
    file.write_text(f"{text}\n{tasks}", encoding="utf-8")
    return load_config(file, ("validate.threads=1", *overrides))


Recorded = tuple[Advice, Path, list[str]]


@pytest.fixture(scope="module")
def recorded(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Advice on two tasks, its page, and what progress was told."""
    out, told = tmp_path_factory.mktemp("docs") / "advice.md", list[str]()
    config = with_tasks(project, TASKS)

    def progress(what: str, done: int, total: int) -> None:
        told.append(what)

    return record(config, project / "advise-runs", out, progress), out, told


@pytest.fixture(scope="module")
def bundles(project: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    out = tmp_path_factory.mktemp("bundles")
    return write_bundles(with_tasks(project, TASKS), tiny_checkpoint, {}, out, silent)


def test_equal_settings_make_two_adapters(project: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The runtime takes equal files for one, and two tasks would be measured as one."""
    write_bundles(
        with_tasks(project, ONE + ONE.replace("climate", "window")), tiny_checkpoint, {}, tmp_path, silent
    )
    records = [read_adapter_record(tmp_path / f"{name}.json") for name in ("climate", "window")]
    assert records[0].size == records[1].size
    assert records[0].sha256 != records[1].sha256


def test_adapters_have_the_configured_ranks_and_layers(bundles: Bundles) -> None:
    climate, window = bundles.adapters
    assert (climate.name, climate.rank, window.name, window.rank) == ("climate", 2, "window", 8)
    # Hidden 64, MLP 128, two layers; q has 64 rows, v 32.
    assert climate.parameters == 2 * 2 * (64 + 64 + 64 + 32)
    assert window.parameters == 2 * (
        4 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 2 * (64 + 128)) + 8 * (128 + 64)
    )
    assert bundles.largest == window
    known = read_adapter_record(bundles.switchable / "adapters" / "climate.json").belongs.tensors
    assert {name.split(".")[-2] for name in known} == {"q_proj", "v_proj"}


def test_bundles_are_whole_and_sized(bundles: Bundles) -> None:
    listed = [verify(path).adapters for path in (bundles.merged, bundles.switchable, bundles.single)]
    assert [found and [entry.name for entry in found] for found in listed] == [
        None,
        ["climate", "window"],
        ["window"],
    ]
    for path, size in (
        (bundles.merged, bundles.merged_bytes),
        (bundles.switchable, bundles.switchable_bytes),
    ):
        assert size == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    adapters = [file for file in (bundles.switchable / "adapters").iterdir() if file.stem == "window"]
    assert bundles.largest.file_bytes == sum(file.stat().st_size for file in adapters)


def test_equal_adapters_are_told_apart_by_order_alone(
    project: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The task that is timed is the one in the bundle of one adapter, however long the names."""
    tasks = ONE + ONE.replace('name = "climate"', 'name = "climate-of-the-rear"')
    made = write_bundles(with_tasks(project, tasks), tiny_checkpoint, {}, tmp_path, silent)
    assert made.largest.name == "climate"
    assert [entry.name for entry in verify(made.single).adapters or ()] == ["climate"]


def test_every_figure_is_measured_and_comes_back_from_json(recorded: Recorded) -> None:
    advice, _, told = recorded
    assert from_json(Advice, to_json(advice)) == advice
    for row in advice.rows:
        assert row.switchable > 0
        assert row.merged is None or row.merged > 0
        assert row.merged is None or row.ratio is not None
    claims = [row.guide.claim for row in advice.rows if row.guide]
    assert claims == [guide.ADAPTER_BYTES, guide.PEAK_HERE, guide.SLOWER_PREFILL, guide.SLOWER_TOKEN]
    assert {"timing both forms", "packaging bundles"} <= set(told)
    assert advice.token_ratio.units == 9


def test_the_store_is_left_with_stages_alone(recorded: Recorded, project: Path) -> None:
    left = sorted(path.name.partition("-")[0] for path in (project / "advise-runs" / "store").iterdir())
    assert left == [".lock", "base"]


def test_the_page_says_all_of_it_in_both_languages(recorded: Recorded) -> None:
    advice, out, _ = recorded
    text = out.read_text(encoding="utf-8")
    assert text == page(advice)
    english, chinese = text.split("\n# 按任务合并")
    for row in advice.rows:
        assert f"| {row.english} |" in english
        assert f"| {row.chinese} |" in chinese
    for language, half in (("en", english), ("zh", chinese)):
        said = [*reasons(advice, language), UNMEASURED[language]]
        assert [one for one in said if "".join(one.split()) not in "".join(half.split())] == []
        assert "| climate | 2 |" in half
    assert "2–3 ×: " in english
    shown = StringIO()
    Console(file=shown, width=80).print(table(advice))
    assert all(row.english.split()[0] in shown.getvalue() for row in advice.rows)


def of_task(advice: Advice) -> Report:
    """The report of a build of the first task that was advised on."""
    report = sample_report.admitted()
    task = advice.tasks[0]
    return replace(
        report,
        name=f"{advice.setting.name}-{task.name}",
        lineage={"base": advice.setting.base},
        gate=replace(report.gate, precision=advice.setting.precision),
        training=replace(
            report.training, method="lora", figures={"trainable_parameters": float(task.parameters)}
        ),
    )


def test_the_record_lies_in_the_run(recorded: Recorded, project: Path) -> None:
    advice = recorded[0]
    run = project / "advise-runs" / advice.setting.name
    assert from_json(Advice, (run / FILE).read_text(encoding="utf-8")) == advice
    assert advice_of(run, of_task(advice)) == advice


def test_advice_for_another_build_is_not_shown(recorded: Recorded, tmp_path: Path) -> None:
    advice = recorded[0]
    report = of_task(advice)
    assert advice_of(tmp_path, report) is None
    (tmp_path / FILE).write_text(to_json(advice), encoding="utf-8")
    assert advice_of(tmp_path, report) == advice
    training = replace(report.training, figures={"trainable_parameters": 1.0})
    others = (
        replace(report, name=f"{advice.setting.name}-weather"),
        replace(report, name=advice.setting.name),
        replace(report, lineage={"base": "0" * 64}),
        replace(report, gate=replace(report.gate, precision="int4")),
        replace(report, training=training),
    )
    assert [advice_of(tmp_path, other) for other in others] == [None] * 5
    adalora = replace(training, method="adalora")
    assert advice_of(tmp_path, replace(report, training=adalora)) == advice
    elsewhere = replace(report, training=replace(training, method="", figures={}))
    assert advice_of(tmp_path, elsewhere) == advice


@pytest.mark.parametrize(("old", "new"), [('"schema_version": 1', '"schema_version": 2'), ('"rows"', '"r"')])
def test_advice_that_cannot_be_read_is_not_shown(
    recorded: Recorded, tmp_path: Path, old: str, new: str
) -> None:
    text = to_json(recorded[0])
    assert text.count(old) == 1
    (tmp_path / FILE).write_text(text.replace(old, new), encoding="utf-8")
    assert advice_of(tmp_path, of_task(recorded[0])) is None


def test_the_report_of_a_task_shows_it_in_both_languages(recorded: Recorded, tmp_path: Path) -> None:
    advice = recorded[0]
    (tmp_path / FILE).write_text(to_json(advice), encoding="utf-8")
    write_report(of_task(advice), tmp_path / "report" / "climate")
    texts = Page((tmp_path / "report" / "climate" / "report.html").read_text(encoding="utf-8")).texts
    for language, drawn in (("en", texts["en"]), ("zh", texts["zh-Hans"])):
        assert set(reasons(advice, language)) <= set(drawn)
        assert {row.english if language == "en" else row.chinese for row in advice.rows} <= set(drawn)
    assert len(texts["en"]) == len(texts["zh-Hans"])
    said = [row.guide.claim.said for row in advice.rows if row.guide]
    assert {f"{one}:" for one in said} <= {text.strip() for text in texts["en"]}
    assert "Merged for each task, or switched" not in draw(sample_report.admitted())


def test_names_in_advice_are_text(recorded: Recorded) -> None:
    advice = recorded[0]
    machine = replace(advice.setting.machine, processor="<img src=x>")
    row = replace(advice.rows[0], english="<img src=y>", chinese="<img src=y>")
    evil = replace(advice, setting=replace(advice.setting, machine=machine), rows=(row, *advice.rows[1:]))
    assert "<img" not in draw(of_task(advice), advice=evil)


def test_reports_that_are_there_are_drawn_with_it(
    recorded: Recorded, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice, runs = recorded[0], project / "advise-runs"
    run = runs / advice.setting.name
    mine, other = run / "report" / "climate", run / "report" / "window"
    (run / FILE).unlink()
    write_report(of_task(advice), mine)
    write_report(replace(of_task(advice), name="another"), other)
    before = (mine / "report.html").read_text(encoding="utf-8")
    assert reasons(advice, "zh")[0] not in before
    monkeypatch.setattr("pipeline.advise.record.advise", lambda *given: advice)
    monkeypatch.setattr("pipeline.advise.record.measure", lambda *given: None)
    record(with_tasks(project, TASKS), runs, None, silent)
    assert reasons(advice, "zh")[0] in (mine / "report.html").read_text(encoding="utf-8")
    assert reasons(advice, "zh")[0] not in (other / "report.html").read_text(encoding="utf-8")


def test_one_task_is_enough(project: Path) -> None:
    advice = record(with_tasks(project, ONE), project / "one-runs", None, silent)
    assert advice.memory_from is None
    assert advice.choice == "merged"
    assert advice.disk_from == 2
    assert reasons(advice, "en")[0].startswith("Merge: for 1 task ")
    assert "is not measured with one" in reasons(advice, "en")[2]


@pytest.mark.parametrize(
    ("precision", "kv_cache", "files"),
    [
        ("int8", "float", {"calibration": ACTIVATIONS}),
        ("int4", "float", {"rounding": ROUNDED}),
        ("int4", "int8", {"calibration": ACTIVATIONS, "rounding": ROUNDED}),
    ],
)
def test_what_is_rounded_is_measured_as_it_is_built(
    precision: str,
    kv_cache: str,
    files: dict[str, str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A calibrated graph rounds other things than one that is not, and is as fast as that makes it."""
    seen: list[Mapping[str, Path]] = []

    def stop(config: Config, base: Path, measured: Mapping[str, Path], out: Path, told: Progress) -> Bundles:
        seen.append(measured)
        raise StageError("seen enough")

    monkeypatch.setattr("pipeline.advise.record.write_bundles", stop)
    chosen = (f"export.precision={precision}", "export.calibration_conversations=8")
    chosen += (f"export.kv_cache={kv_cache}",)
    with pytest.raises(StageError, match="seen enough"):
        record(with_tasks(project, ONE, *chosen), project / f"{precision}-{kv_cache}-runs", None, silent)
    assert seen[0].keys() == files.keys()
    for stage, file in files.items():
        assert (seen[0][stage] / "stage.json").is_file()
        assert (seen[0][stage] / file).is_file()


@pytest.mark.parametrize(
    ("merged", "switchable", "first"),
    [
        ((100, 100), (101, 20), 2),
        ((100, 100), (180, 20), 3),  # 200 and 200 are no less, 300 and 220 are
        ((100, 100), (179, 20), 2),
        ((100, 100), (90, 200), 1),
        ((100, 100), (120, 100), None),
        ((100, 60), (500, 10), 10),
    ],
)
def test_the_break_even_is_where_the_lines_cross(
    merged: tuple[float, float], switchable: tuple[float, float], first: int | None
) -> None:
    assert break_even(merged, switchable) == first

    def smaller(tasks: int) -> bool:
        return switchable[0] + (tasks - 1) * switchable[1] < merged[0] + (tasks - 1) * merged[1]

    assert next((tasks for tasks in range(1, 100) if smaller(tasks)), None) == first


def figures(disk: int, memory: int, token: float) -> tuple[Bundles, Measured]:
    """Three tasks: bundles of 100 MB, switchable of `disk`; 300 MB each, all switchable `memory`."""
    mb = 10**6
    adapters = tuple(TaskAdapter(name, 16, 10, 10 * mb) for name in "abc")
    nowhere = Path("nowhere")
    merged = tuple(Times(10, 1, 5, 0.01, 5) for _ in range(9))
    slower = tuple(Times(10, token, 5 + 0.1 * (turn % 3 - 1), 0.01, 5) for turn in range(9))
    return (
        Bundles(nowhere, 100 * mb, nowhere, disk * mb, nowhere, adapters),
        Measured(
            one=Ready(1, 300 * mb, 300 * mb),
            all_merged=Ready(3, 900 * mb, 900 * mb),
            single=Ready(1, 320 * mb, 320 * mb),
            switchable=Ready(1, memory * mb, memory * mb),
            merged_times=merged,
            adapter_times=slower,
            bare_times=merged,
        ),
    )


def test_the_recommendation_follows_from_the_figures() -> None:
    def of(disk: int, memory: int, token: float) -> Advice:
        return advise(SETTING, *figures(disk, memory, token))

    few = of(131, 360, 1.2)
    assert (few.choice, few.disk_from, few.memory_from) == ("switchable", 2, 2)
    assert "Where no millisecond may be lost, merge." in reasons(few, "en")[3]
    assert "cannot be told from none" in reasons(few, "en")[3]
    assert "应选择合并" in reasons(few, "zh")[3]
    assert of(310, 1000, 1.2).choice == "merged"
    assert of(131, 1000, 1.2).choice == of(310, 360, 1.2).choice == "undecided"
    assert of(131, 1000, 1.2).memory_from is None
    assert "at no number of tasks" in reasons(of(131, 1000, 1.2), "en")[2]
    assert "merge." not in reasons(of(131, 360, 1.0), "en")[3]


def test_the_guide_is_judged_on_the_figures() -> None:
    def verdict(token: float) -> str:
        rows = advise(SETTING, *figures(131, 360, token)).rows
        return next(row.guide.verdict for row in rows if row.guide and row.guide.claim is guide.SLOWER_TOKEN)

    assert (verdict(1.2), verdict(2.5)) == ("fails", "holds")
    peak = next(
        row.guide
        for row in advise(SETTING, *figures(131, 360, 1)).rows
        if row.guide and row.guide.claim is guide.PEAK_HERE
    )
    assert peak.figure is not None
    assert (round(peak.figure.value, 3), peak.verdict) == (1.067, "fails")


def test_a_bundle_that_cannot_be_opened_stops_it(bundles: Bundles, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"advise: the merged bundle with 2 tasks stopped: .*not a bundle"):
        measure(replace(bundles, merged=tmp_path), 8, 2, 1, lambda done, total: None)


def cockpit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cockpit", *arguments])
    cli.app(standalone_mode=False)


@pytest.mark.parametrize(
    ("tasks", "overrides", "says"),
    [
        ("", (), r'(?s)has no tasks to compare .*\[\[task\]\]\nname = "navigation"\nfunctions = '),
        (
            TASKS,
            ("mode=merged", "train.method=dora"),
            'method = "dora" scales whole products',
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, tasks: str, overrides: tuple[str, ...], says: str
) -> None:
    with_tasks(project, tasks)
    options = [part for override in overrides for part in ("--set", override)]
    with pytest.raises(ConfigError, match=says):
        cockpit(monkeypatch, "advise", str(project / "advise.toml"), *options)


def test_a_task_that_adapts_nothing_is_named(project: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = with_tasks(project, ONE.replace("r = 2", 'target_modules = ["q_porj"]'))
    with pytest.raises(ConfigError, match=r'"climate" adapts no layer .* may name down_proj, gate_proj'):
        write_bundles(config, tiny_checkpoint, {}, tmp_path, silent)


def test_a_page_in_no_place_is_refused_at_once(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no place for a page"):
        record(with_tasks(project, ONE), project / "advise-runs", tmp_path, silent)


def test_json_is_on_standard_output_alone(
    project: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.advise.record.record", lambda *given: recorded[0])
    with_tasks(project, TASKS)
    cockpit(monkeypatch, "advise", str(project / "advise.toml"), "--json")
    assert json.loads(capsys.readouterr().out)["choice"] == recorded[0].choice
    cockpit(monkeypatch, "advise", str(project / "advise.toml"))
    assert reasons(recorded[0], "en")[0].split(":")[0] in capsys.readouterr().out
