"""Advice as a page in Markdown, in English and Chinese, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from rich.table import Table

from pipeline.advise.advice import Advice, Row
from pipeline.advise.text import UNMEASURED, guide, ratio, reasons, shown
from pipeline.claims.page import WIDTH
from pipeline.evidence.report.figures import size
from pipeline.evidence.report.words import Language

_TITLES = {"en": "# Merged for each task, or switched", "zh": "# 按任务合并，还是运行时切换"}
_HEADS = {
    "en": "| | merged | switchable | switchable over merged | the guide says |",
    "zh": "| | 合并 | 可切换 | 可切换 / 合并 | 指南的说法 |",
}
_TASKS = {"en": "| task | rank | parameters | adapter |", "zh": "| 任务 | 秩 | 参数 | 适配器 |"}


def page(advice: Advice) -> str:
    """The whole page, to be written as UTF-8."""
    return "\n".join([*_half(advice, "en"), "", *_half(advice, "zh")]) + "\n"


def table(advice: Advice) -> Table:
    """Every figure, for a terminal of 80 columns."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    made.add_column("", overflow="fold", ratio=1)
    for head in ("merged", "switchable"):
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("ratio", justify="right", max_width=14)
    made.add_column("guide", max_width=12, overflow="fold")
    for row in advice.rows:
        made.add_row(
            row.english,
            shown(row, row.merged),
            shown(row, row.switchable),
            ratio(row),
            guide(row, "en"),
        )
    return made


def _half(advice: Advice, language: Language) -> Iterator[str]:
    first, *others = reasons(advice, language)
    yield _TITLES[language]
    yield ""
    yield _folded(_measured(advice, language), language)
    yield ""
    yield f"**{first}**"
    yield ""
    yield from (f"- {reason}" for reason in others)
    yield ""
    yield _HEADS[language]
    yield "|---|---|---|---|---|"
    yield from (_line(row, language) for row in advice.rows)
    yield ""
    yield _TASKS[language]
    yield "|---|---|---|---|"
    for task in advice.tasks:
        yield f"| {task.name} | {task.rank} | {task.parameters:,} | {size(task.file_bytes)} |"
    yield ""
    yield _folded(UNMEASURED[language], language)


def _line(row: Row, language: Language) -> str:
    cells = (
        row.english if language == "en" else row.chinese,
        shown(row, row.merged),
        shown(row, row.switchable),
        ratio(row),
        guide(row, language),
    )
    return f"| {' | '.join(cells)} |"


def _measured(advice: Advice, language: Language) -> str:
    setting, machine = advice.setting, advice.setting.machine
    memory = size(machine.memory_bytes)
    if language == "en":
        return (
            f"What the tasks of `{setting.name}` cost in either form, measured by `cockpit advise` with the "
            f"config's base in {setting.precision}, context {setting.context}, and random adapters of its "
            "ranks and layers, of which the largest is timed. Memory is of a process of its own; load is "
            "timed once; other times are "
            "medians of rounds in which the forms ran in turn, ratios are taken within a round, with 95 % "
            f"intervals. On {machine.processor}, {machine.cores} cores, {memory} of memory; threads: "
            f"{setting.threads}."
        )
    return (
        f"`{setting.name}` 的各任务在两种形式下的代价，由 `cockpit advise` 实测：使用配置的基座"
        f"（{setting.precision}，上下文 {setting.context}）和按配置的秩与层生成的随机适配器，"
        "计时取其中最大者。"
        "内存为独立进程的占用；加载只计时一次；"
        "其余时间为各形式轮流运行的中位数，比值在同一轮内计算，附 95 % 区间。"
        f"机器：{machine.processor}，{machine.cores} 核，内存 {memory}；线程数 {setting.threads}。"
    )


def _folded(text: str, language: Language) -> str:
    """English in lines of the page's width; Chinese has no spaces to break at."""
    return fill(text, WIDTH) if language == "en" else text
