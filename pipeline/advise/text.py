"""Advice in words, in English and Chinese: figures of a row, the recommendation and its reasons."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.advise.advice import Advice, Row
from pipeline.evidence.report.figures import interval, milliseconds, number, size, times
from pipeline.evidence.report.words import Language, say
from runtime.report import Estimate

UNMEASURED = {
    "en": (
        "Not measured: how right the answers are. Adapters here are random; that a task's adapter, merged or "
        "not, answers as it was trained to is what `cockpit build` proves. Nor energy, heat, and other loads "
        "on the machine."
    ),
    "zh": (
        "未测量：回答是否正确。此处的适配器是随机的；任务的适配器无论合并与否，回答是否与训练结果一致，由 "
        "`cockpit build` 证明。能耗、发热和其他负载也未测量。"
    ),
}


def shown(row: Row, value: float | None) -> str:
    """A figure in the row's unit; a dash where there is none."""
    if value is None:
        return "—"
    return size(value) if row.unit == "bytes" else milliseconds(value)


def ratio(row: Row) -> str:
    """Switchable over merged, with the interval of what was timed."""
    return "" if row.ratio is None else _spread(row.ratio)


def guide(row: Row, language: Language) -> str:
    """What the reference guide says of it, and the verdict."""
    if row.guide is None:
        return ""
    return f"{row.guide.claim.said}: {say(language, f'claim.{row.guide.verdict}')}"


def reasons(advice: Advice, language: Language) -> Iterator[str]:
    """The recommendation in one sentence, then what speaks for and against it."""
    count, english = len(advice.tasks), language == "en"
    disk, update = advice.rows[:2]
    assert disk.merged is not None
    assert update.merged is not None
    less = number(update.merged / update.switchable)
    match advice.choice, english:
        case "switchable", True:
            yield f"Switch: for {count} tasks one switchable bundle takes less disk and less memory here."
        case "switchable", False:
            yield f"建议切换：{count} 个任务用一个可切换部署包，磁盘和内存占用都更小。"
        case "merged", True:
            yield f"Merge: for {_tasks(count)} merged takes less disk and less memory here."
        case "merged", False:
            yield f"建议合并：{count} 个任务合并后磁盘和内存占用都更小。"
        case _, True:
            yield "Undecided: disk speaks for one form and memory for the other; take what is scarcer."
        case _, False:
            yield "未定：磁盘和内存的结论相反；以更紧缺的一项为准。"
    if english:
        yield (
            f"Disk: {size(disk.merged)} merged, {size(disk.switchable)} switchable; "
            f"{_from(advice.disk_from, language)}."
        )
        memory = (
            _from(advice.memory_from, language) if count > 1 else "with one task there is no telling from"
        )
        yield f"Memory: {memory}{' how many tasks switchable is the smaller' if count == 1 else ''}."
        yield f"The price: a token takes {_spread(advice.token_ratio)} the merged time, {_told(advice, language)}"
        yield (
            f"An update is {size(update.switchable)} instead of {size(update.merged)}, {less} times less: the "
            "more often tasks are updated over the air, the more that speaks for switching."
        )
    else:
        yield (
            f"磁盘：合并 {size(disk.merged)}，可切换 {size(disk.switchable)}；"
            f"{_from(advice.disk_from, language)}。"
        )
        memory = (
            _from(advice.memory_from, language) if count > 1 else "只有一个任务，无法得知从几个任务起更小"
        )
        yield f"内存：{memory}。"
        yield f"代价：每个词元用时为合并后的 {_spread(advice.token_ratio)}，{_told(advice, language)}"
        yield (
            f"更新一个任务需传输 {size(update.switchable)}，而不是 {size(update.merged)}，小 {less} 倍："
            "空中更新越频繁，越应选择切换。"
        )


def _told(advice: Advice, language: Language) -> str:
    """How the first token's time differs, where that can be told."""
    first, token = advice.first_ratio, advice.token_ratio
    spread = _spread(first)
    certain = first.low > 1 or first.high < 1
    if language == "en":
        text = f"a first token {spread}" + ("." if certain else ", which is no difference that can be told.")
        return text + (" Where no millisecond may be lost, merge." if token.low > 1 else "")
    text = f"首词元为 {spread}" + ("。" if certain else "，差异无法确定。")
    return text + ("若不能损失任何速度，应选择合并。" if token.low > 1 else "")


def _from(tasks: int | None, language: Language) -> str:
    if tasks is None:
        return (
            "switchable is smaller at no number of tasks" if language == "en" else "任务再多，可切换也不更小"
        )
    return (
        f"from {_tasks(tasks)} on switchable is the smaller"
        if language == "en"
        else f"从 {tasks} 个任务起，可切换更小"
    )


def _spread(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return times(estimate.value)
    return f"{times(estimate.value)} ({interval(estimate, times)})"


def _tasks(count: int) -> str:
    return f"{count} task{'s' if count > 1 else ''}"
