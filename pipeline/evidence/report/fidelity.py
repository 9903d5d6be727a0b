"""Whether the bundle computes what was trained: KL position by position, and agreement on the first token."""

from __future__ import annotations

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Chart, Mark
from pipeline.evidence.report.figures import check_threshold, number, plain
from pipeline.evidence.report.words import Language, form, say
from runtime.report import Report


def fidelity(report: Report, language: Language) -> list[Chart]:
    """Charts of the bundle against the unmerged model; none where the chain does not reach it."""
    bundle = report.parity.bundle
    if bundle is None:
        return []
    title, note = say(language, "chart.kl"), say(language, "chart.kl.note", f"{bundle.positions:,}")
    marks = [
        Mark(figure.value, f"{say(language, short)} {number(figure.value)}")
        for figure, short in ((bundle.kl_mean, "mean"), (bundle.kl_p99, "p99"))
    ]
    histogram = Chart(title, note, charts.kl_histogram(bundle.kl_histogram, marks, title, note))
    title = say(language, "chart.agreement")
    note = say(language, "chart.agreement.note", plain(number(bundle.near_tie)))
    rows = [(form(language, hop.step.name), hop.origin) for hop in report.parity.hops]
    limits = [
        Mark(check.threshold, f"≥ {check_threshold(check)}")
        for check in report.gate.checks
        if check.name == "min_top1"
    ]
    return [histogram, Chart(title, note, charts.agreement(rows, limits, title, note))]
