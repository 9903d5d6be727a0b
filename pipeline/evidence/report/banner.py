"""The top of the page: the verdict in a sentence or two, and the few figures to remember."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import figures
from pipeline.evidence.report.checks import Line, lines, steps
from pipeline.evidence.report.words import Language, name, say
from runtime.report import Report


@dataclass(frozen=True)
class Key:
    """A figure to remember."""

    label: str
    figure: str
    note: str


@dataclass(frozen=True)
class Banner:
    """The verdict and why."""

    sentences: tuple[str, ...]
    missed: tuple[Line, ...]
    """Failed checks, then undecided ones."""
    keys: tuple[Key, ...]


def banner(report: Report, language: Language) -> Banner:
    """The verdict of a report in one language."""
    checked = lines(report, language)
    failed = tuple(line for line in checked if line.check.verdict == "fail")
    undecided = tuple(line for line in checked if line.check.verdict == "inconclusive")
    return Banner(
        sentences=tuple(_sentences(report, language, len(failed), len(undecided))),
        missed=failed + undecided,
        keys=tuple(_keys(report, language)),
    )


def _sentences(report: Report, language: Language, failed: int, undecided: int) -> list[str]:
    every = len(report.gate.checks)
    if report.gate.verdict == "pass":
        return [say(language, "summary.pass", every)]
    if report.gate.verdict == "inconclusive":
        return [say(language, "summary.inconclusive", undecided, every)]
    key = "summary.fail.undecided" if undecided else "summary.fail"
    sentences = [say(language, key, failed, every, undecided)]
    for step in steps(report):
        if step.guilty:
            form, against = (name(language, one) for one in (step.comparison.name, step.comparison.against))
            sentences.append(say(language, "summary.guilty", form, against))
    return sentences


def _keys(report: Report, language: Language) -> list[Key]:
    keys = []
    exact = {one.name: figures.share(one.overall.exact_call.value) for one in report.task.contenders}
    if "bundle" in exact:
        note = say(language, "key.accuracy.note", exact.get("unmerged", "—"), exact.get("base", "—"))
        keys.append(Key(say(language, "exact"), exact["bundle"], note))
    for one in report.parity.comparisons:
        if (one.name, one.against) == ("bundle", "unmerged"):
            note = say(language, "key.kl.note", figures.number(one.kl_p99))
            keys.append(Key(say(language, "kl.mean"), figures.number(one.kl_mean.value), note))
    longest = max(report.latency.points, key=lambda point: point.prompt_tokens, default=None)
    if longest is not None and {"bundle"} <= longest.token.keys() & longest.token_ratio.keys():
        ratio = figures.times(longest.token_ratio["bundle"].value)
        keys.append(
            Key(
                say(language, "token"),
                figures.milliseconds(longest.token["bundle"].p50),
                say(language, "key.token.note", ratio, longest.prompt_tokens),
            )
        )
    if (footprint := report.latency.footprints.get("bundle")) is not None:
        note = say(language, "key.memory.note", figures.milliseconds(footprint.load_ms))
        keys.append(Key(say(language, "memory"), figures.size(footprint.peak_bytes), note))
    return keys
