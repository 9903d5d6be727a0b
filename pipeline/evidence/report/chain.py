"""The way from the unmerged model to the bundle: a box for each form, and the error of every operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.evidence.culprit import HOP_CHECKS
from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Chart, Curve, Mark
from pipeline.evidence.report.checks import culprit_verdict, place
from pipeline.evidence.report.figures import check_threshold
from pipeline.evidence.report.words import Language, form, say
from runtime.report import Hop, Report, Verdict


@dataclass(frozen=True)
class Step:
    """One box of the way.

    Attributes:
        hop: what was measured.
        verdict: of the hop's own check; inconclusive where the gate has none.
        kind: whether it is the guilty one, comes after it, or has only its own verdict.
        site: where the guilty one breaks, or an empty string.
    """

    hop: Hop
    verdict: Verdict
    kind: Literal["verdict", "guilty", "after"]
    site: str


@dataclass(frozen=True)
class Layer:
    """A layer, or what lies outside of them, and each traced form's largest error in it."""

    label: str
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Chain:
    """The chain in one language."""

    steps: tuple[Step, ...]
    charts: tuple[Chart, ...]
    traced: tuple[str, ...]
    """Forms that show their operators' outputs."""
    layers: tuple[Layer, ...]


def chain(report: Report, language: Language) -> Chain:
    """Boxes, charts and rows of a report's chain."""
    traced = [hop for hop in report.parity.hops if hop.sites]
    return Chain(
        steps=tuple(_steps(report, language)),
        charts=(*([_sites(report, traced, language)] if traced else []), _forms(report, language)),
        traced=tuple(hop.step.name for hop in traced),
        layers=tuple(_layers(traced)),
    )


def _steps(report: Report, language: Language) -> Iterator[Step]:
    verdicts = {check.at: check.verdict for check in report.gate.checks if check.name in HOP_CHECKS}
    culprit, broken = report.gate.culprit, False
    for hop in report.parity.hops:
        verdict = verdicts.get(hop.step.name, "inconclusive")
        if culprit is not None and culprit.hop == hop.step.name:
            broken = culprit_verdict(report.gate) == "fail"
            site = place(language, culprit.site) if culprit.site and broken else ""
            yield Step(hop, verdict, "guilty", site)
        else:
            yield Step(hop, verdict, "after" if broken else "verdict", "")


def _sites(report: Report, traced: list[Hop], language: Language) -> Chart:
    # The form that shows most gives the order; what only others show is put behind.
    most_first = sorted(traced, key=lambda hop: -len(hop.sites))
    order = {
        site: at
        for at, site in enumerate(
            dict.fromkeys((one.layer, one.site) for hop in most_first for one in hop.sites)
        )
    }
    curves = [
        Curve(hop.step.name, [(order[one.layer, one.site], one.error) for one in hop.sites]) for hop in traced
    ]
    firsts: dict[int, int] = {}
    for (layer, _), at in order.items():
        if layer is not None:
            firsts.setdefault(layer, at)
    culprit, guilty = report.gate.culprit, None
    site = culprit.site if culprit is not None and culprit_verdict(report.gate) == "fail" else None
    if site is not None and (site.layer, site.site) in order:
        guilty = charts.Spot(order[site.layer, site.site], site.error, place(language, site))
    title, note = say(language, "chart.sites"), say(language, "chart.sites.note")
    ticks = [(at, str(layer)) for layer, at in firsts.items()]
    return Chart(title, note, charts.site_errors(curves, len(order), ticks, guilty, title, note))


def _layers(traced: list[Hop]) -> Iterator[Layer]:
    largest: dict[str, dict[str, float]] = {}
    for hop in sorted(traced, key=lambda hop: -len(hop.sites)):
        for one in hop.sites:
            errors = largest.setdefault(one.site if one.layer is None else str(one.layer), {})
            errors[hop.step.name] = max(one.error, errors.get(hop.step.name, 0.0))
    for label, errors in largest.items():
        yield Layer(label, tuple(errors.get(hop.step.name) for hop in traced))


def _forms(report: Report, language: Language) -> Chart:
    title, note = say(language, "chart.forms"), say(language, "chart.forms.note")
    rows = [(form(language, hop.step.name), hop.origin) for hop in report.parity.hops]
    limits = [
        Mark(check.threshold, f"{say(language, short)} ≤ {check_threshold(check)}")
        for check_name, short in (("max_mean_kl", "mean"), ("max_p99_kl", "p99"))
        for check in report.gate.checks
        if check.name == check_name
    ]
    return Chart(title, note, charts.kl_by_form(rows, limits, title, note))
