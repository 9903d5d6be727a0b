"""Whether the bundle still does the job: scores by group of utterances, and the answers that changed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Chart, Dot
from pipeline.evidence.report.words import Language, name, say
from runtime.report import Answer, Report, Score

Parts = tuple[str, str, str]
"""A text cut into what it shares with another at its start, what differs, what it shares at its end."""


@dataclass(frozen=True)
class Group:
    """A set of utterances and every contender's score on it."""

    label: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class Change:
    """An utterance that one of the unmerged model and the bundle answered right, the other not."""

    utterance: str
    wrong: str
    """Whose answer is shown: the one that is not right."""
    expected: Parts
    answer: Parts


@dataclass(frozen=True)
class Accuracy:
    """The task report in one language."""

    contenders: tuple[str, ...]
    charts: tuple[Chart, ...]
    groups: tuple[Group, ...]
    lost: tuple[Change, ...]
    """Right by the unmerged model, wrong by the bundle."""
    gained: tuple[Change, ...]


def accuracy(report: Report, language: Language) -> Accuracy:
    """Charts, rows and changed answers of a report's task."""
    contenders = report.task.contenders
    overall = Group(say(language, "all"), {one.name: one.overall for one in contenders})
    by_language = _groups(language, {one.name: one.by_language for one in contenders})
    by_domain = _groups(language, {one.name: one.by_domain for one in contenders})
    note = say(language, "chart.accuracy.note")
    drawn = []
    for key, groups in (("chart.accuracy", [overall, *by_language]), ("chart.domain", by_domain)):
        if groups:
            title = say(language, key)
            rows = [
                (group.label, [Dot(who, s.exact_call) for who, s in group.scores.items()]) for group in groups
            ]
            drawn.append(Chart(title, note, charts.accuracy(rows, title, note)))
    return Accuracy(
        contenders=tuple(one.name for one in contenders),
        charts=tuple(drawn),
        groups=(overall, *by_language, *by_domain),
        lost=_changes(report, right="unmerged", wrong="bundle"),
        gained=_changes(report, right="bundle", wrong="unmerged"),
    )


def _groups(language: Language, scores: dict[str, dict[str, Score]]) -> list[Group]:
    keys = dict.fromkeys(key for by_group in scores.values() for key in by_group)
    return [
        Group(
            name(language, key), {who: by_group[key] for who, by_group in scores.items() if key in by_group}
        )
        for key in keys
    ]


def _changes(report: Report, right: str, wrong: str) -> tuple[Change, ...]:
    return tuple(
        _change(answer, wrong)
        for answer in report.task.answers
        if answer.exact.get(right) and answer.exact.get(wrong) is False
    )


def _change(answer: Answer, wrong: str) -> Change:
    expected, found = answer.expected, answer.answers.get(wrong, "")
    shorter = min(len(expected), len(found))
    start = next((at for at in range(shorter) if expected[at] != found[at]), shorter)
    end = next((at for at in range(shorter - start) if expected[-1 - at] != found[-1 - at]), shorter - start)
    return Change(answer.utterance, wrong, _cut(expected, start, end), _cut(found, start, end))


def _cut(text: str, start: int, end: int) -> Parts:
    return text[:start], text[start : len(text) - end], text[len(text) - end :]
