"""The gate and the build's figures as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from pipeline.evidence.report.checks import culprit_sentence
from pipeline.evidence.report.figures import (
    check_figure,
    check_interval,
    check_threshold,
    milliseconds,
    number,
    printable,
    share,
    size,
    times,
)
from runtime.report import Check, Report, Verdict

_STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "inconclusive": "bold yellow"}
_WORDS: dict[Verdict, str] = {"pass": "passed", "fail": "FAILED", "inconclusive": "UNDECIDED"}


def verdict_table(report: Report) -> Table:
    """One row for each check; those that did not pass say why. Below, which step of the chain broke."""
    gate = report.gate
    passed = sum(check.verdict == "pass" for check in gate.checks)
    verdict = "admitted" if gate.verdict == "pass" else "refused"
    title = Text(f"{gate.precision}: {verdict}, {passed} of {len(gate.checks)} checks passed")
    title.stylize(_STYLES[gate.verdict])
    if report.baseline:
        title.append(f"\nagainst the release {printable(report.baseline)}", "dim")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.caption_justify = "left"
    table.caption = Text(printable(culprit_sentence(gate, "en")), _STYLES[gate.verdict])
    table.add_column("check", overflow="fold", ratio=1)
    table.add_column("figure", no_wrap=True, justify="right")
    table.add_column("allowed", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in gate.checks:
        table.add_row(
            _subject(check),
            check_figure(check),
            f"{check.direction} {check_threshold(check)}",
            Text(_WORDS[check.verdict], _STYLES[check.verdict]),
        )
    return table


def _subject(check: Check) -> Text:
    text = Text(printable(check.subject))
    if check.verdict != "pass":
        interval = f" ({check_interval(check)})" if check_interval(check) else ""
        text.append(f"\n{printable(check.reason)}{interval}", "dim")
    return text


def summary_table(report: Report) -> Table:
    """What the bundle is beside the base and the unmerged model: accuracy, parity, speed, size."""
    scores = {one.name: one.overall for one in report.task.contenders}
    footprints = report.latency.footprints
    names = _ordered({*scores, *footprints, "bundle"})
    table = Table(title=report.name, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "bundle" else "")

    def add(label: str, figures: dict[str, str]) -> None:
        table.add_row(label, *(figures.get(name, "") for name in names))

    add("exact calls", {name: share(score.exact_call.value) for name, score in scores.items()})
    add("function name", {name: share(score.function_name.value) for name, score in scores.items()})
    add("argument F1", {name: share(score.argument_f1.value) for name, score in scores.items()})
    against = [hop.origin for hop in report.parity.hops]
    add("mean KL from unmerged", {one.name: number(one.kl_mean.value) for one in against})
    add("same token", {one.name: share(one.top1.value) for one in against})
    for point in report.latency.points:
        ttft, token, behind = point.ttft, point.token, point.prompt_tokens
        add(f"first token, {behind} behind", {name: milliseconds(found.p50) for name, found in ttft.items()})
        add("  over unmerged", {name: times(found.value) for name, found in point.ttft_ratio.items()})
        add(f"each token, {behind} behind", {name: milliseconds(found.p50) for name, found in token.items()})
        add("  over unmerged", {name: times(found.value) for name, found in point.token_ratio.items()})
    call = report.latency.call
    add("whole answer", {name: milliseconds(found.p50) for name, found in call.times.items()})
    add("  over unmerged", {name: times(found.value) for name, found in call.ratio.items()})
    add("load time", {name: milliseconds(found.load_ms) for name, found in footprints.items()})
    add("peak memory", {name: size(found.peak_bytes) for name, found in footprints.items()})
    add("size on disk", _sizes(report))
    return table


def _ordered(names: Iterable[str]) -> list[str]:
    """As a model comes to be; contenders that are not known go last."""
    order = ("base", "unmerged", "merged", "bundle")
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _sizes(report: Report) -> dict[str, str]:
    found = dict(report.sizes)
    if "base" in found and "adapter" in found:
        found["unmerged"] = found["base"] + found["adapter"]
    if "candidate" in found:
        found.setdefault("bundle", found["candidate"])
    return {name: size(count) for name, count in found.items()}
