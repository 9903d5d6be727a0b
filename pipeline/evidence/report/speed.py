"""How fast the bundle is and what it takes: the charts and rows of the latency report."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Bar, Chart, Timing
from pipeline.evidence.report.figures import milliseconds, size
from pipeline.evidence.report.words import Language, name, say
from runtime.report import Distribution, Estimate, Report


@dataclass(frozen=True)
class Timings:
    """One kind of time: its chart, and its rows by what was measured, such as a prompt length."""

    chart: Chart
    rows: tuple[tuple[str, tuple[Timing, ...]], ...]


@dataclass(frozen=True)
class Speed:
    """The latency report in one language."""

    timings: tuple[Timings, ...]
    footprint: tuple[Chart, ...]


def speed(report: Report, language: Language) -> Speed:
    """Time to first token, time per token and of a whole answer, peak memory and load time."""
    points, call, footprints = report.latency.points, report.latency.call, report.latency.footprints
    note = "chart.latency.note"
    timings = []
    if points:
        behind = [say(language, "behind", at.prompt_tokens) for at in points]
        ttft = [_row(language, at.ttft, at.ttft_ratio) for at in points]
        token = [_row(language, at.token, at.token_ratio) for at in points]
        timings += [
            _timings(language, "ttft", note, list(zip(behind, ttft, strict=True))),
            _timings(language, "token", note, list(zip(behind, token, strict=True))),
        ]
    if call.times:
        whole = (say(language, "utterances", call.utterances), _row(language, call.times, call.ratio))
        timings.append(_timings(language, "call", "chart.call.note", [whole]))
    memory = [(who, float(one.peak_bytes), size(one.peak_bytes)) for who, one in footprints.items()]
    load = [(who, one.load_ms, milliseconds(one.load_ms)) for who, one in footprints.items()]
    return Speed(
        timings=tuple(timings),
        footprint=(bars(language, "memory", memory), bars(language, "load", load)) if footprints else (),
    )


def bars(language: Language, title: str, rows: list[tuple[str, float, str]]) -> Chart:
    """A bar for each (name, figure, its text); `title` is a key of the words."""
    drawn = [Bar(known, name(language, known), value, text) for known, value, text in rows]
    return Chart(say(language, title), "", charts.bars(drawn, say(language, title)))


def _row(
    language: Language, times: dict[str, Distribution], ratios: dict[str, Estimate]
) -> tuple[Timing, ...]:
    return tuple(Timing(who, name(language, who), found, ratios.get(who)) for who, found in times.items())


def _timings(
    language: Language, title: str, note: str, rows: list[tuple[str, tuple[Timing, ...]]]
) -> Timings:
    said, told = say(language, title), say(language, note)
    return Timings(Chart(said, told, charts.latency(rows, said, told)), tuple(rows))
