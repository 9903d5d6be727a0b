"""The tables of the terminal: readable at 80 columns, and a reason for whatever did not pass."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
import sample_report
from rich.console import Console
from rich.table import Table

from pipeline.evidence.report.terminal import summary_table, verdict_table
from runtime.report import Culprit, Report, SiteError

SAMPLES = (sample_report.admitted, sample_report.refused, sample_report.undecided, sample_report.bare)


def shown(table: Table) -> str:
    out = StringIO()
    Console(file=out, width=80, no_color=True).print(table)
    return out.getvalue()


@pytest.mark.parametrize("sample", SAMPLES)
def test_tables_fit_80_columns_and_cut_nothing_off(sample: Callable[[], Report]) -> None:
    for text in (shown(verdict_table(sample())), shown(summary_table(sample()))):
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_check_has_its_verdict(sample: Callable[[], Report]) -> None:
    report = sample()
    lines = [line.rstrip() for line in shown(verdict_table(report)).splitlines()][1:]
    words = {"pass": "passed", "fail": "FAILED", "inconclusive": "UNDECIDED"}
    found = [word for line in lines for word in words.values() if line.endswith(word)]
    assert found == [words[check.verdict] for check in report.gate.checks]


def test_what_did_not_pass_says_why_beside_figure_and_threshold() -> None:
    text = " ".join(shown(verdict_table(sample_report.refused())).split())
    assert "int8: refused, 14 of 27 checks passed" in text
    assert (
        "mean KL from the unmerged model 0.430 at most 0.01 FAILED beyond the threshold (0.370 – 0.494)"
        in text
    )


def test_below_the_checks_stands_what_broke_and_above_what_it_was_held_against() -> None:
    refused = " ".join(shown(verdict_table(sample_report.refused())).split())
    assert refused.endswith(
        "Breaks at “ONNX float32”: layer 3, attention.qkv (MatMul): error 0.310, 1.0×10⁻⁶ just before."
    )
    admitted = shown(verdict_table(sample_report.admitted()))
    assert f"against the release {sample_report.admitted().baseline}" in admitted
    assert "Breaks at" not in admitted


def test_the_summary_sets_the_bundle_beside_the_others() -> None:
    rows = [" ".join(line.split()) for line in shown(summary_table(sample_report.admitted())).splitlines()]
    assert "base unmerged merged bundle" in rows
    assert "exact calls 3.0 % 90.8 % 90.4 %" in rows
    assert "mean KL from unmerged 3.1×10⁻⁹ 0.00130" in rows
    assert "same token 100 % 99.2 %" in rows
    assert "whole answer 1.96 s 1.70 s 342 ms" in rows
    assert "each token, 256 behind 45.6 ms 38.1 ms 6.84 ms" in rows
    assert "size on disk 542 MB 562 MB 538 MB 175 MB" in rows


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    report = sample_report.refused()
    hostile = replace(
        report.gate.checks[0], subject="[red]subject[/red]\x1b[2J", reason="\x1b]0;title\x07 [bold]why"
    )
    evil = "\x1b[31m\x07"
    culprit = Culprit(evil, evil, (), SiteError(1, evil, evil, 1.0), 0.0)
    gate = replace(report.gate, checks=(hostile,), culprit=culprit)
    text = shown(verdict_table(replace(report, gate=gate, baseline=evil)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]subject[/red]" in text
    assert "[bold]why" in text
