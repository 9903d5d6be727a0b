"""Whether the bundle computes what was trained: the charts of the parity report."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Mark
from pipeline.evidence.report.figures import check_threshold, number, plain
from pipeline.evidence.report.words import Language, name, say
from runtime.report import Report


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and what it shows."""

    title: str
    note: str
    drawing: Markup


def fidelity(report: Report, language: Language) -> list[Chart]:
    """KL form by form, KL of the bundle position by position, and agreement on the first token."""
    comparisons = report.parity.comparisons
    rows = [(name(language, one.name), one) for one in comparisons]
    drawn = []
    if comparisons:
        title, note = say(language, "chart.forms"), say(language, "chart.forms.note")
        limits = [
            *_limit(report, "max_mean_kl", say(language, "mean")),
            *_limit(report, "max_p99_kl", say(language, "p99")),
        ]
        drawn.append(Chart(title, note, charts.kl_by_form(rows, limits, title, note)))
    for one in comparisons:
        if (one.name, one.against) == ("bundle", "unmerged"):
            title, note = say(language, "chart.kl"), say(language, "chart.kl.note", f"{one.positions:,}")
            marks = [
                Mark(one.kl_mean.value, f"{say(language, 'mean')} {number(one.kl_mean.value)}"),
                Mark(one.kl_p99, f"{say(language, 'p99')}: {number(one.kl_p99)}"),
            ]
            drawn.append(Chart(title, note, charts.kl_histogram(one.kl_histogram, marks, title, note)))
    if comparisons:
        title = say(language, "chart.agreement")
        note = say(language, "chart.agreement.note", plain(number(comparisons[-1].near_tie)))
        drawn.append(Chart(title, note, charts.agreement(rows, _limit(report, "min_top1", ""), title, note)))
    return drawn


def _limit(report: Report, check_name: str, of: str) -> list[Mark]:
    """The threshold of a check, if the gate has it, such as `mean ≤ 0.01`."""
    for check in report.gate.checks:
        if check.name == check_name:
            sign = "≤" if check.direction == "at most" else "≥"
            return [Mark(check.threshold, f"{of} {sign} {check_threshold(check)}".strip())]
    return []
