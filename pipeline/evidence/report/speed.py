"""How fast the bundle is and what it takes: the charts and rows of the latency report."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Bar, Timing
from pipeline.evidence.report.fidelity import Chart
from pipeline.evidence.report.figures import milliseconds, size
from pipeline.evidence.report.words import Language, name, say
from runtime.report import Distribution, Estimate, LatencyPoint, Report


@dataclass(frozen=True)
class Timings:
    """One kind of time: its chart, and its rows by prompt length."""

    chart: Chart
    rows: tuple[tuple[int, tuple[Timing, ...]], ...]


@dataclass(frozen=True)
class Speed:
    """The latency report in one language."""

    timings: tuple[Timings, ...]
    footprint: tuple[Chart, ...]


def speed(report: Report, language: Language) -> Speed:
    """Time to first token, time per token, peak memory and load time."""
    points, footprints = report.latency.points, report.latency.footprints
    timings = (
        _timings(language, "ttft", [(at, at.ttft, at.ttft_ratio) for at in points]),
        _timings(language, "token", [(at, at.token, at.token_ratio) for at in points]),
    )
    memory = [(who, float(one.peak_bytes), size(one.peak_bytes)) for who, one in footprints.items()]
    load = [(who, one.load_ms, milliseconds(one.load_ms)) for who, one in footprints.items()]
    return Speed(
        timings=timings if points else (),
        footprint=(bars(language, "memory", memory), bars(language, "load", load)) if footprints else (),
    )


def bars(language: Language, title: str, rows: list[tuple[str, float, str]]) -> Chart:
    """A bar for each (name, figure, its text); `title` is a key of the words."""
    drawn = [Bar(known, name(language, known), value, text) for known, value, text in rows]
    return Chart(say(language, title), "", charts.bars(drawn, say(language, title)))


def _timings(
    language: Language,
    title: str,
    measured: list[tuple[LatencyPoint, dict[str, Distribution], dict[str, Estimate]]],
) -> Timings:
    rows = [
        (
            point.prompt_tokens,
            tuple(Timing(who, name(language, who), found, ratios.get(who)) for who, found in times.items()),
        )
        for point, times, ratios in measured
    ]
    groups = [(say(language, "behind", tokens), timings) for tokens, timings in rows]
    note = say(language, "chart.latency.note")
    drawing = charts.latency(groups, say(language, title), note)
    return Timings(Chart(say(language, title), note, drawing), tuple(rows))
