"""Both forms of a build's tasks, merged and switchable: the advice, charts, and rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.advise.advice import Advice, Bytes, Row
from pipeline.advise.text import ratio, reasons, shown
from pipeline.claims.finding import Verdict as Judgement
from pipeline.evidence.report.charts import Chart
from pipeline.evidence.report.claims import KINDS
from pipeline.evidence.report.figures import size
from pipeline.evidence.report.speed import bars
from pipeline.evidence.report.words import Language, say
from runtime.report import Verdict


@dataclass(frozen=True)
class FormsLine:
    """One figure of both forms.

    Attributes:
        label: what it is.
        merged: of a bundle for each task.
        switchable: of one bundle for all.
        ratio: the second over the first, with its interval; empty where one has no such figure.
        said: what the guide says of the ratio or figure; empty where it says nothing.
        verdict: on that.
        kind: the verdict of a check that looks like it.
    """

    label: str
    merged: str
    switchable: str
    ratio: str
    said: str
    verdict: Judgement | None
    kind: Verdict | None


@dataclass(frozen=True)
class Forms:
    """The section in one language.

    Attributes:
        note: what was measured, and on what.
        choice: the advice in a sentence.
        reasons: what it rests on, and what it costs.
        charts: disk, memory and the size of an update.
        lines: every figure.
    """

    note: str
    choice: str
    reasons: tuple[str, ...]
    charts: tuple[Chart, ...]
    lines: tuple[FormsLine, ...]


def forms(advice: Advice, language: Language) -> Forms:
    """What was found for all tasks of the build."""
    setting = advice.setting
    choice, *others = reasons(advice, language)
    return Forms(
        note=say(
            language,
            "advice.note",
            setting.precision,
            setting.context,
            setting.machine.processor,
            setting.threads,
        ),
        choice=choice,
        reasons=tuple(others),
        charts=(
            _chart(language, "advice.disk", advice.disk),
            _chart(language, "advice.memory", advice.memory),
            _chart(language, "advice.update", advice.update),
        ),
        lines=tuple(_line(row, language) for row in advice.rows),
    )


def _chart(language: Language, title: str, found: Bytes) -> Chart:
    both = (("merged", found.merged), ("switchable", found.switchable))
    return bars(language, title, [(form, float(count), size(count)) for form, count in both])


def _line(row: Row, language: Language) -> FormsLine:
    said = row.guide
    return FormsLine(
        label=row.english if language == "en" else row.chinese,
        merged=shown(row, row.merged),
        switchable=shown(row, row.switchable),
        ratio=ratio(row),
        said="" if said is None else said.claim.said,
        verdict=None if said is None else said.verdict,
        kind=None if said is None else KINDS[said.verdict],
    )
