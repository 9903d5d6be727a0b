"""report.html: one file with everything in it, to be looked at from disk, in English and Chinese.

The whole page is drawn once per language, so that a reader (and a screen reader) has one language from
top to bottom; CSS shows one of the two. Nothing is fetched, and a content security policy says so.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.advise.advice import Advice
from pipeline.claims.finding import Claims
from pipeline.evidence.report import figures
from pipeline.evidence.report.accuracy import Accuracy, accuracy
from pipeline.evidence.report.advice import Forms, forms
from pipeline.evidence.report.banner import Banner, banner
from pipeline.evidence.report.chain import Chain, chain
from pipeline.evidence.report.charts import Chart, colour, gauge
from pipeline.evidence.report.checks import Line, lines
from pipeline.evidence.report.claims import Told, told
from pipeline.evidence.report.fidelity import fidelity
from pipeline.evidence.report.own_calls import CallTime, call_time
from pipeline.evidence.report.rounding import Bits, bits
from pipeline.evidence.report.speed import Speed, bars, speed
from pipeline.evidence.report.training import training
from pipeline.evidence.report.words import LANGUAGES, Language, form, name, say
from pipeline.rounding.record import Rounding
from runtime.report import Report

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class View:
    """What one language's page shows beside the report itself."""

    language: Language
    banner: Banner
    chain: Chain
    lines: list[Line]
    fidelity: list[Chart]
    accuracy: Accuracy
    speed: Speed
    call_time: CallTime | None
    sizes: Chart
    training: list[Chart]
    claims: list[Told]
    advice: Forms | None
    rounding: Bits | None


def draw(
    report: Report,
    claims: Claims | None = None,
    advice: Advice | None = None,
    rounding: Rounding | None = None,
) -> str:
    """The page as text, to be written as UTF-8.

    With sections on the guide's claims, on advice and on how matrices were rounded, where there are any.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update(say=say, word=name, form=form, figures=figures, colour=colour, gauge=gauge)
    script = (_HERE / "language.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        report=report,
        views=[_view(report, claims, advice, rounding, language) for language in LANGUAGES],
        # Both are files of ours, not text of a report.
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _view(
    report: Report,
    claims: Claims | None,
    advice: Advice | None,
    rounding: Rounding | None,
    language: Language,
) -> View:
    sizes = [(artifact, float(count), figures.size(count)) for artifact, count in report.sizes.items()]
    return View(
        language=language,
        banner=banner(report, language),
        chain=chain(report, language),
        lines=lines(report.gate, language),
        fidelity=fidelity(report, language),
        accuracy=accuracy(report, language),
        speed=speed(report, language),
        call_time=call_time(report, language),
        sizes=bars(language, "sizes", sizes),
        training=training(report, language),
        claims=[] if claims is None else told(claims, language),
        advice=None if advice is None else forms(advice, language),
        rounding=None if rounding is None else bits(rounding, language),
    )
