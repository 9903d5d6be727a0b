"""The top of the page: the verdict in a sentence or two, and the few figures to remember."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import figures
from pipeline.evidence.report.checks import Line, culprit_sentence, lines
from pipeline.evidence.report.words import Language, say
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
    checked = lines(report.gate, language)
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
        counted = say(language, "summary.inconclusive", undecided, every)
    else:
        key = "summary.fail.undecided" if undecided else "summary.fail"
        counted = say(language, key, failed, every, undecided)
    return [sentence for sentence in (culprit_sentence(report.gate, language), counted) if sentence]


def _keys(report: Report, language: Language) -> list[Key]:
    keys = []
    exact = {one.name: figures.share(one.overall.exact_call.value) for one in report.task.contenders}
    if "bundle" in exact:
        note = say(language, "key.accuracy.note", exact.get("unmerged", "—"), exact.get("base", "—"))
        keys.append(Key(say(language, "exact"), exact["bundle"], note))
    if (found := report.parity.bundle) is not None:
        note = say(language, "key.kl.note", figures.number(found.kl_p99.value))
        keys.append(Key(say(language, "kl.mean"), figures.number(found.kl_mean.value), note))
    call = report.latency.call
    if "bundle" in call.times and "bundle" in call.ratio:
        note = say(language, "key.call.note", figures.times(call.ratio["bundle"].value))
        keys.append(Key(say(language, "call"), figures.milliseconds(call.times["bundle"].p50), note))
    if (footprint := report.latency.footprints.get("bundle")) is not None:
        note = say(language, "key.memory.note", figures.milliseconds(footprint.load_ms))
        keys.append(Key(say(language, "memory"), figures.size(footprint.peak_bytes), note))
    return keys
