"""How an int4 build was rounded, as a section of its report: read from the stage's own record or left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
import sample_report
from test_report_html import PROBE, Page
from test_report_html import browser as browser  # a fixture
from test_rounding import SYSTEM, silent
from test_rounding import data as data  # a fixture

from pipeline import stages
from pipeline.config import Export, Objective
from pipeline.evidence.admission import write_report
from pipeline.evidence.report.html import draw
from pipeline.evidence.report.rounding import Step, bits, larger, smaller
from pipeline.evidence.report.words import LANGUAGES
from pipeline.rounding.assignment import Form, frontier, within_bytes
from pipeline.rounding.record import Chosen, Figures, Norms, Rounding, rounding_of
from pipeline.stage import RECORD, StageResult, artifact, link, run_stage

SMALL, MIDDLE, LARGE = (
    Form(4, 64, 1_000_000, 0.05),
    Form(4, 32, 1_200_000, 0.03),
    Form(8, 64, 2_000_000, 0.01),
)
TRIED = (SMALL, MIDDLE, LARGE)
TITLES = {"en": "Where the bits went", "zh": "比特用在何处"}


def chosen(form: Form) -> Chosen:
    return Chosen(form.bits, form.block_size, form.nbytes, form.kl, TRIED)


def rounding(budget: int = 5_000_000, matrices: int = 30) -> Rounding:
    """Of matrices that are alike, of which the budget lets some be larger."""
    names = [f"model.layers.{number}.mlp.down_proj.weight" for number in range(matrices)]
    points = frontier(dict.fromkeys(names, TRIED))
    point = within_bytes(points, budget)
    forms = {name: chosen(form) for name, form in sorted(point.forms.items())}
    pairs = tuple((float(each.nbytes), each.kl) for each in points)
    return Rounding(Objective(), Figures(256, 2466, point.nbytes, point.kl, forms, pairs, {}))


def test_a_matrix_has_its_form_for_what_a_step_would_cost() -> None:
    assert smaller(chosen(SMALL)) is None
    assert larger(chosen(LARGE)) is None
    # Back to the middle costs 0.02 nats for 0.8 MB, back to the smallest 0.04 for 1 MB.
    assert smaller(chosen(LARGE)) == Step(MIDDLE, 800_000, pytest.approx(0.02), pytest.approx(0.025))
    # To the middle takes off 0.02 for 0.2 MB, to the largest 0.04 for 1 MB.
    assert larger(chosen(SMALL)) == Step(MIDDLE, 200_000, pytest.approx(0.02), pytest.approx(0.1))
    worse = Chosen(4, 64, 1_000_000, 0.05, (SMALL, replace(LARGE, kl=0.05)))
    assert larger(worse) is None


def test_no_step_down_is_cheaper_than_a_step_up_that_the_budget_had_room_for() -> None:
    found = rounding(budget=33_000_000).figures
    down = [step.price for each in found.forms.values() if (step := smaller(each))]
    up = [step.price for each in found.forms.values() if (step := larger(each))]
    assert len(down) == 15  # of 30, after fifteen steps of 0.2 MB
    assert min(down) >= max(up) - 1e-12


def test_the_table_of_the_frontier_has_both_ends_and_the_choice() -> None:
    found = rounding(budget=33_000_000)
    assert len(found.figures.frontier) > 40
    rows = bits(found, "en").frontier
    assert 12 <= len(rows) <= 13
    assert [row.size for row in rows if row.chosen] == ["33.0\u00a0MB"]
    assert (rows[0].size, rows[-1].size) == ("30.0\u00a0MB", "60.0\u00a0MB")
    assert (rows[0].kl, rows[-1].kl) == ("1.50", "0.300")


def test_a_frontier_of_one_choice_is_drawn_too() -> None:
    found = rounding(matrices=3).figures
    one = replace(found, matrix_bytes=5, expected_kl=0.0, frontier=((5.0, 0.0),))
    assert "nan" not in bits(Rounding(Objective(), one), "en").chart.drawing
    assert len(bits(Rounding(Objective(), one), "en").frontier) == 1


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (Objective(), "The closest choice in the bytes that the plain form takes: 3.60"),
        (Objective(budget_bytes=4_000_000), "The closest choice of at most 4.00\u00a0MB: 3.60"),
        (
            Objective(minimize="bytes", budget_kl=0.1),
            "The smallest choice with a KL of at most 0.100 foretold: 3.60",
        ),
    ],
)
def test_what_was_asked_is_said(objective: Objective, said: str) -> None:
    found = rounding(budget=3_700_000, matrices=3)
    assert bits(replace(found, objective=objective), "en").choice.startswith(said)


def test_the_section_is_in_both_languages_and_names_are_text() -> None:
    found = rounding(budget=33_000_000)
    evil = {**found.figures.forms, "<img src=x>": chosen(MIDDLE)}
    found = replace(found, figures=replace(found.figures, forms=evil))
    html = draw(sample_report.admitted(), rounding=found)
    assert "<img" not in html
    texts = Page(html).texts
    assert len(texts["en"]) == len(texts["zh-Hans"])
    assert TITLES["en"] in texts["en"]
    assert TITLES["zh"] in texts["zh-Hans"]
    for language, part in zip(LANGUAGES, texts.values(), strict=True):
        names = [text for text in part if text.startswith("layers.") and text.endswith(".mlp.down_proj")]
        assert names == [f"layers.{number}.mlp.down_proj" for number in range(30)]
        assert set(bits(found, language).reasons) <= set(part)
    assert texts["en"].count("chosen") == 1
    assert TITLES["en"] not in draw(sample_report.admitted())


def test_the_update_s_error_is_told_apart_from_the_weight_s() -> None:
    found = rounding(budget=33_000_000)
    first, second = (f"model.layers.{number}.mlp.down_proj.weight" for number in range(2))
    apart = {first: Norms(3.0, 0.3, 0.2, 0.02), second: Norms(4.0, 0.4, 0.15, 0.0)}
    told = bits(replace(found, figures=replace(found.figures, apart=apart)), "en")
    assert "that the adapter has changed, rounding changes 10.0\u00a0%" in told.reasons[-1]
    assert "directions of its update BA, 8.0\u00a0% of BA, which itself is 5.0\u00a0%" in told.reasons[-1]
    lines = {line.name: (line.error, line.update_error) for line in told.matrices}
    assert lines["layers.0.mlp.down_proj"] == ("10.0\u00a0%", "10.0\u00a0%")
    assert lines["layers.1.mlp.down_proj"] == ("10.0\u00a0%", "0\u00a0%")
    assert lines["layers.2.mlp.down_proj"] == ("", "")
    assert len(bits(found, "en").reasons) == 2


@pytest.fixture(scope="module")
def made(
    tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StageResult]:
    """A run whose rounding the stage itself has made."""
    folder = tmp_path_factory.mktemp("runs")
    settings = Export(precision="int4", calibration_conversations=10)
    plan = stages.rounding(settings, SYSTEM, artifact(tiny_checkpoint), {"data": artifact(data)})
    result = run_stage(plan.stage, folder / "store", lambda out, scratch: plan.work(out, scratch, silent))
    link(result.artifact.path, folder / "run" / "rounding")
    return folder / "run", result


def test_a_report_is_drawn_with_the_rounding_that_it_descends_from(
    made: tuple[Path, StageResult], tmp_path: Path
) -> None:
    run, result = made
    lineage = {"rounding": result.artifact.digest}
    found = rounding_of(run, lineage)
    assert found is not None
    assert found.figures.matrix_bytes == result.figures["matrix_bytes"]
    assert len(found.figures.forms) == 9
    assert (found.figures.matrix_bytes, found.figures.expected_kl) in found.figures.frontier
    link(run / "rounding", tmp_path / "rounding")
    report = replace(sample_report.admitted(), lineage=lineage)
    # A task of a switchable build has its report in a folder of its own.
    for folder in (tmp_path / "report", tmp_path / "report" / "climate"):
        write_report(report, folder)
        assert TITLES["en"] in (folder / "report.html").read_text(encoding="utf-8")
        write_report(replace(report, lineage={"rounding": "0" * 64}), folder)
        assert TITLES["en"] not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"outputs": 1}', "figures", "frontier", "objective"])
def test_a_record_that_cannot_be_read_is_not_shown(
    broken: str, made: tuple[Path, StageResult], tmp_path: Path
) -> None:
    run, result = made
    record = json.loads((run / "rounding" / RECORD).read_text(encoding="utf-8"))
    text = broken
    if broken == "figures":
        text = json.dumps({**record, "figures": {**record["figures"], "positions": "many"}})
    elif broken == "frontier":
        text = json.dumps({**record, "figures": {**record["figures"], "frontier": [[1.0]]}})
    elif broken == "objective":
        text = json.dumps({**record, "config": {"objective": {"minimize": "heat"}}})
    (tmp_path / "rounding").mkdir()
    lineage = {"rounding": result.artifact.digest}
    assert rounding_of(tmp_path, lineage) is None
    (tmp_path / "rounding" / RECORD).write_text(text, encoding="utf-8")
    assert rounding_of(tmp_path, lineage) is None
    (tmp_path / "rounding" / RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert rounding_of(tmp_path, lineage) is not None
    assert rounding_of(tmp_path, {}) is None


def test_a_browser_draws_the_section_without_overflow(
    browser: tuple[chromium.Chromium, str], tmp_path: Path
) -> None:
    window, _ = browser
    page = tmp_path / "report.html"
    page.write_text(draw(sample_report.admitted()), encoding="utf-8")
    window.open(page)
    before = window.run(PROBE)
    page.write_text(draw(sample_report.admitted(), rounding=rounding(33_000_000)), encoding="utf-8")
    window.open(page)
    after = window.run(PROBE)
    assert (after["charts"], after["empty"]) == (before["charts"] + 1, 0)
    window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert window.run(PROBE)["page"] <= after["window"]
    assert window.console() == []
