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


def reasons(advice: Advice, language: Language) -> tuple[str, ...]:
    """The recommendation in one sentence, then what it rests on and what it costs."""
    return tuple(_english(advice) if language == "en" else _chinese(advice))


def _english(advice: Advice) -> Iterator[str]:
    tasks = f"{len(advice.tasks)} task{'s' if len(advice.tasks) > 1 else ''}"
    yield {
        "switchable": f"Switch: for {tasks} one switchable bundle takes less disk and less memory here.",
        "merged": f"Merge: for {tasks} the merged form takes less disk and less memory here.",
        "undecided": "Undecided: disk speaks for one form, memory for the other; take what is scarcer.",
    }[advice.choice]
    yield (
        f"Disk: {size(advice.disk.merged)} merged, {size(advice.disk.switchable)} switchable; "
        f"{_english_from(advice.disk_from)}."
    )
    memory = f"{size(advice.memory.merged)} merged, {size(advice.memory.switchable)} switchable; "
    one = "what a second task adds is not measured with one"
    yield f"Memory: {memory}{one if len(advice.tasks) == 1 else _english_from(advice.memory_from)}."
    token, first = advice.token_ratio, advice.first_ratio
    unsure = "" if _differs(first) else ", a difference that cannot be told from none"
    merge = " Where no millisecond may be lost, merge." if token.low > 1 else ""
    yield (
        f"Speed: a token takes {_spread(token)} the merged time, a first token {_spread(first)}{unsure}."
        f"{merge}"
    )
    yield (
        f"Updates: {size(advice.update.switchable)} instead of {size(advice.update.merged)}, "
        f"{number(advice.update.merged / advice.update.switchable)} times less: the more often a task is "
        "updated, the more that speaks for switching."
    )


def _chinese(advice: Advice) -> Iterator[str]:
    count = len(advice.tasks)
    yield {
        "switchable": f"建议切换：{count} 个任务共用一个可切换部署包，磁盘和内存占用都更小。",
        "merged": f"建议合并：{count} 个任务合并后，磁盘和内存占用都更小。",
        "undecided": "未定：磁盘和内存的结论相反；以更紧缺的一项为准。",
    }[advice.choice]
    yield (
        f"磁盘：合并 {size(advice.disk.merged)}，可切换 {size(advice.disk.switchable)}；"
        f"{_chinese_from(advice.disk_from)}。"
    )
    memory = f"合并 {size(advice.memory.merged)}，可切换 {size(advice.memory.switchable)}；"
    one = "只有一个任务，未测得再加一个任务的占用"
    yield f"内存：{memory}{one if count == 1 else _chinese_from(advice.memory_from)}。"
    token, first = advice.token_ratio, advice.first_ratio
    unsure = "" if _differs(first) else "，与无差异无法区分"
    merge = "若不能损失任何速度，应选择合并。" if token.low > 1 else ""
    yield f"速度：每个词元用时为合并后的 {_spread(token)}，首词元为 {_spread(first)}{unsure}。{merge}"
    yield (
        f"更新：传输 {size(advice.update.switchable)}，而不是 {size(advice.update.merged)}，后者为前者的 "
        f"{number(advice.update.merged / advice.update.switchable)} 倍：任务更新越频繁，越应选择切换。"
    )


def _english_from(tasks: int | None) -> str:
    if tasks is None:
        return "switchable is smaller at no number of tasks"
    return f"switchable is smaller from {tasks} task{'s' if tasks > 1 else ''} on"


def _chinese_from(tasks: int | None) -> str:
    return "任务再多，可切换也不更小" if tasks is None else f"从 {tasks} 个任务起，可切换更小"


def _differs(ratio: Estimate) -> bool:
    return ratio.low > 1 or ratio.high < 1


def _spread(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return times(estimate.value)
    return f"{times(estimate.value)} ({interval(estimate, times)})"
