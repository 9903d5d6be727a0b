"""`cockpit claims` on a tiny run: every claim is found, recorded, shown; and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import sample_report
from rich.console import Console
from test_build import Recorder, settings
from test_build import project as project  # a fixture
from test_report_html import Page

from pipeline.build import build
from pipeline.claims import guide
from pipeline.claims.finding import FILE, Claims, Finding, claims_of
from pipeline.claims.folders import folders
from pipeline.claims.function import Functions, Products, function_findings
from pipeline.claims.guide import CLAIMS
from pipeline.claims.inference_cost import Speed, Speeds, inference_findings
from pipeline.claims.page import page
from pipeline.claims.record import record
from pipeline.claims.terminal import claims_table
from pipeline.claims.trainee import Losses
from pipeline.evidence.contender import Decode
from pipeline.evidence.report.html import draw
from runtime.errors import UsageError
from runtime.report import from_json, to_json

Told = list[tuple[str, int, int]]
Recorded = tuple[Claims, Path, Path, Told]
"""The findings, the run's folder, the page, and the progress that was told."""


@pytest.fixture(scope="module")
def recorded(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Claims checked on a run that was built as far as the merge."""
    runs, out, told = project / "claims-runs", tmp_path_factory.mktemp("docs") / "claims.md", Told()
    build(settings(project), runs, Recorder(), until="merged")
    config = settings(project, "validate.threads=1", "train.threads=1")
    built = folders(runs / "tiny", project / "config.toml")
    found, written = record(config, built, runs / "store", out, lambda *what: told.append(what))
    assert written == runs / "tiny" / FILE
    return found, runs / "tiny", out, told


def by_claim(claims: Claims) -> dict[guide.Claim, Finding]:
    return {finding.claim: finding for finding in claims.findings}


def test_every_claim_is_found_once_in_the_guides_order(recorded: Recorded) -> None:
    assert tuple(finding.claim for finding in recorded[0].findings) == CLAIMS


def test_what_must_hold_of_any_model_holds_of_this_one(recorded: Recorded) -> None:
    found = by_claim(recorded[0])
    for claim in (
        guide.FORMULA,
        guide.ONLY_TARGETS,
        guide.STARTS_AS_BASE,
        guide.FROZEN,
        guide.MERGED_FUNCTION,
        guide.MERGED_PRODUCTS,
        guide.UNMERGED_PRODUCTS,
        guide.STANDARD_FORMAT,
        guide.SWITCHING,
    ):
        assert found[claim].verdict == "holds", found[claim]
    for claim in (guide.GENERALIZES, guide.STEP_SECONDS, guide.ADALORA, guide.DORA, guide.LORA_PLUS):
        assert (found[claim].verdict, found[claim].figure) == ("unmeasured", None)


def test_what_was_measured_has_figures(recorded: Recorded) -> None:
    found = by_claim(recorded[0])
    for claim in (guide.SLOWER_PREFILL, guide.SLOWER_TOKEN, guide.AS_BASE_TOKEN, guide.SPEEDUP):
        figure = found[claim].figure
        assert figure is not None
        assert 0 < figure.low <= figure.value <= figure.high
        assert figure.units >= 7
    state = found[guide.MEMORY_STATE]
    assert state.figure is not None
    assert "12.0 and 12.0 bytes a trained parameter, 12 by count" in state.note
    for claim in (guide.CLOSE, guide.RANK_QUALITY, guide.ALONE_HERE):
        assert found[claim].figure is not None


def test_progress_is_told_in_every_part(recorded: Recorded) -> None:
    told = recorded[3]
    parts = list(dict.fromkeys(message for message, _, _ in told))
    assert parts == [
        "counting parameters",
        "comparing base, merged and unmerged",
        "timing inference",
        "timing steps of training",
        "training what is compared",
    ]
    assert told[-1][1] == told[-1][2] >= 160


def test_the_record_survives_a_trip_through_json(recorded: Recorded) -> None:
    found, run, _, _ = recorded
    assert from_json(Claims, (run / FILE).read_text(encoding="utf-8")) == found
    assert claims_of(run, {**found.lineage, "onnx": "0" * 64}) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text[:100],
        lambda text: text.replace('"steps": 16', '"stairs": 16'),
    ],
)
def test_a_record_that_cannot_be_read_is_not_shown(
    recorded: Recorded, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    found = recorded[0]
    assert claims_of(tmp_path, found.lineage) is None
    (tmp_path / FILE).write_text(damage(to_json(found)), encoding="utf-8")
    assert claims_of(tmp_path, found.lineage) is None


def test_claims_of_another_adapter_are_not_shown(recorded: Recorded) -> None:
    found, run, _, _ = recorded
    assert claims_of(run, {**found.lineage, "adapter": "0" * 64}) is None


def test_the_page_has_every_claim_beside_its_finding(recorded: Recorded) -> None:
    found, _, out, _ = recorded
    text = out.read_text(encoding="utf-8")
    assert text == page(found)
    rows = [line for line in text.splitlines() if line.startswith("| ") and " | " in line]
    for finding in found.findings:
        (row,) = [
            row for row in rows if row.startswith(f"| {finding.claim.english} | {finding.claim.said} |")
        ]
        assert row.count("|") == 6
        assert row.endswith(f"{finding.note} |")
    assert text.count("**does not hold here**") == sum(f.verdict == "fails" for f in found.findings)
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == list(
        dict.fromkeys(claim.section for claim in CLAIMS)
    )


def test_the_table_fits_80_columns(recorded: Recorded) -> None:
    out = StringIO()
    Console(file=out, width=80, no_color=True).print(claims_table(recorded[0]))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "…" not in out.getvalue()


def test_the_report_shows_them_in_both_languages(recorded: Recorded) -> None:
    evil = replace(recorded[0].findings[0], claim=replace(CLAIMS[0], english="<img src=x>", chinese="<img>"))
    claims = replace(recorded[0], findings=(evil, *recorded[0].findings[1:]))
    html = draw(sample_report.admitted(), claims)
    assert "<img" not in html
    texts = Page(html).texts
    assert {claim.english for claim in CLAIMS[1:]} <= set(texts["en"])
    assert {claim.chinese for claim in CLAIMS[1:]} <= set(texts["zh-Hans"])
    assert len(texts["en"]) == len(texts["zh-Hans"])
    assert "What holds of the reference guide" not in draw(sample_report.admitted())


def test_a_report_beside_them_is_drawn_with_them(recorded: Recorded, tmp_path: Path) -> None:
    from pipeline.evidence.admission import write_report

    found = recorded[0]
    report = replace(sample_report.admitted(), lineage=found.lineage)
    (tmp_path / FILE).write_text(to_json(found), encoding="utf-8")
    write_report(report, tmp_path / "report")
    assert CLAIMS[0].chinese in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    write_report(replace(report, lineage={}), tmp_path / "report")
    assert CLAIMS[0].chinese not in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def speed(prefill: float, token: float, peak: int) -> Speed:
    return Speed((prefill,) * 9, (token,) * 9, peak)


def test_speeds_bear_the_guide_out_or_not() -> None:
    request = Decode(256, 16)
    as_said = Speeds(speed(10, 1, 100), speed(10.2, 1.01, 100), speed(25, 2.5, 106))
    assert {finding.verdict for finding in inference_findings(as_said, request)} == {"holds"}
    otherwise = Speeds(speed(10, 1, 100), speed(12, 1.2, 100), speed(12.5, 1.5, 130))
    assert {finding.verdict for finding in inference_findings(otherwise, request)} == {"fails"}


def test_functions_bear_the_guide_out_or_not() -> None:
    right, wrong = Losses((1.0, 2.0), (5, 5)), Losses((30.0, 40.0), (5, 5))
    good = Functions(0.0, 0.0, 1.0, 1e-6, 15, 14, Products(15, 100), Products(43, 104), right, wrong)
    assert {finding.verdict for finding in function_findings(good)} == {"holds"}
    bad = Functions(0.1, 0.1, 1.0, 1e-2, 15, 14, Products(16, 100), Products(15, 100), right, right)
    assert {finding.verdict for finding in function_findings(bad)} == {"fails"}


def cockpit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "claims", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_run_that_was_not_built_is_one_sentence(project: Path, tmp_path: Path) -> None:
    config = project / "config.toml"
    done = cockpit(config, "--runs", tmp_path)
    assert done.returncode == 2
    said = f"{tmp_path / 'tiny'} has no base, data, adapter, merged, so there is nothing to check claims on; "
    assert done.stderr == f"cockpit: {said}run `cockpit build {config}` first\n"
    assert not (tmp_path / "tiny").exists()


def test_a_run_that_lacks_its_merge_is_named(recorded: Recorded, project: Path, tmp_path: Path) -> None:
    for name in ("base", "data", "adapter"):
        (tmp_path / "tiny").mkdir(exist_ok=True)
        (tmp_path / "tiny" / name).symlink_to((recorded[1] / name).resolve())
    with pytest.raises(UsageError, match="has no merged, so"):
        folders(tmp_path / "tiny", project / "config.toml")


@pytest.mark.parametrize("out", ["absent/claims.md", "."])
def test_a_page_that_has_no_place_is_refused_before_anything_is_measured(
    recorded: Recorded, project: Path, tmp_path: Path, out: str
) -> None:
    built = folders(recorded[1], project / "config.toml")
    with pytest.raises(UsageError, match="is no place for a page"):
        record(
            settings(project),
            built,
            recorded[1].parent / "store",
            tmp_path / out,
            lambda *told: pytest.fail("it measures"),
        )


def test_json_is_all_that_is_printed(
    recorded: Recorded,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipeline.claims import record as recording
    from pipeline.cli import main

    found, run, _, _ = recorded
    monkeypatch.setattr(recording, "check_claims", lambda config, subject, progress: found)
    monkeypatch.setattr(
        sys, "argv", ["cockpit", "claims", str(project / "config.toml"), "--runs", str(run.parent), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert from_json(Claims, capsys.readouterr().out) == found
