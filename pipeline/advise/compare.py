"""Figures of both forms → what they say of a number of tasks, and which form they speak for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from pipeline.advise.advice import SCHEMA_VERSION, Advice, Bytes, Choice, Row, Setting
from pipeline.advise.bundles import Bundles
from pipeline.advise.contender import Times
from pipeline.advise.measure import Measured
from pipeline.claims import guide
from pipeline.claims.finding import Finding, computed, exactly, measured
from pipeline.evidence.statistics import median
from runtime.report import Estimate


def advise(setting: Setting, bundles: Bundles, found: Measured) -> Advice:
    """Figures and what follows from them alone."""
    count = len(bundles.adapters)
    disk = Bytes(count * bundles.merged_bytes, bundles.switchable_bytes)
    memory = Bytes(found.all_merged.resident_bytes, found.switchable.resident_bytes)
    adapters = sum(adapter.file_bytes for adapter in bundles.adapters)
    return Advice(
        schema_version=SCHEMA_VERSION,
        setting=setting,
        tasks=bundles.adapters,
        rows=(*_sizes(bundles), *_memory(count, found), *_speed(setting, found)),
        token_ratio=_ratio(found.adapter_times, found.merged_times, _token),
        first_ratio=_ratio(found.adapter_times, found.merged_times, _first),
        disk=disk,
        memory=memory,
        update=Bytes(bundles.merged_bytes, bundles.largest.file_bytes),
        choice=_choice(disk, memory),
        disk_from=break_even(
            (bundles.merged_bytes, bundles.merged_bytes),
            (bundles.switchable_bytes - adapters * (count - 1) / count, adapters / count),
        ),
        memory_from=None
        if count == 1
        else break_even(
            (
                found.one.resident_bytes,
                _more(found.one.resident_bytes, found.all_merged.resident_bytes, count),
            ),
            (
                found.single.resident_bytes,
                _more(found.single.resident_bytes, found.switchable.resident_bytes, count),
            ),
        ),
    )


def _choice(disk: Bytes, memory: Bytes) -> Choice:
    smaller = {one.switchable < one.merged for one in (disk, memory)}
    if len(smaller) == 2:
        return "undecided"
    return "switchable" if smaller == {True} else "merged"


def break_even(merged: tuple[float, float], switchable: tuple[float, float]) -> int | None:
    """The smallest number of tasks at which the switchable form is smaller.

    Args:
        merged: what the first task takes, and each further one.
        switchable: likewise.
    """
    ahead, gained = switchable[0] - merged[0], merged[1] - switchable[1]
    if ahead < 0:
        return 1
    return 2 + math.floor(ahead / gained) if gained > 0 else None


def _more(first: float, everything: float, count: int) -> float:
    """What each task but the first takes."""
    return (everything - first) / (count - 1)


def _sizes(bundles: Bundles) -> list[Row]:
    count, largest = len(bundles.adapters), bundles.largest
    return [
        _row(
            f"disk, bundles of {_tasks(count)}",
            f"磁盘：{count} 个任务的部署包",
            "bytes",
            count * bundles.merged_bytes,
            bundles.switchable_bytes,
        ),
        _row(
            "update of one task: a bundle, or an adapter with its record",
            "更新一个任务：整个部署包，或一个适配器及其说明文件",
            "bytes",
            bundles.merged_bytes,
            largest.file_bytes,
            computed(
                guide.ADAPTER_BYTES,
                largest.file_bytes,
                f"rank {largest.rank}, {largest.parameters:,} parameters",
            ),
        ),
    ]


def _memory(count: int, found: Measured) -> list[Row]:
    ratio = exactly(found.single.peak_bytes / found.one.peak_bytes)
    rows = [
        _row(
            "peak memory, one task ready",
            "峰值内存：一个任务就绪",
            "bytes",
            found.one.peak_bytes,
            found.single.peak_bytes,
            measured(guide.PEAK_HERE, ratio, "peak of the process"),
        ),
        _row(
            "resident memory, one task ready",
            "常驻内存：一个任务就绪",
            "bytes",
            found.one.resident_bytes,
            found.single.resident_bytes,
        ),
    ]
    if count > 1:
        rows += [
            _row(
                f"peak memory, {_tasks(count)} ready",
                f"峰值内存：{count} 个任务就绪",
                "bytes",
                found.all_merged.peak_bytes,
                found.switchable.peak_bytes,
            ),
            _row(
                f"resident memory, {_tasks(count)} ready",
                f"常驻内存：{count} 个任务就绪",
                "bytes",
                found.all_merged.resident_bytes,
                found.switchable.resident_bytes,
            ),
            _row(
                f"resident memory: one merged bundle, beside {_tasks(count)} switchable",
                f"常驻内存：一个合并部署包，对照可切换的 {count} 个任务",
                "bytes",
                found.one.resident_bytes,
                found.switchable.resident_bytes,
            ),
        ]
    rows.append(
        _row(
            f"load: {_tasks(count)} ready, each has answered once",
            f"加载：{count} 个任务就绪，各回答一次",
            "ms",
            found.all_merged.ready_ms,
            found.switchable.ready_ms,
        )
    )
    return rows


def _speed(setting: Setting, found: Measured) -> list[Row]:
    merged, adapter, bare = found.merged_times, found.adapter_times, found.bare_times
    prompt, behind = f"{setting.prompt_tokens} tokens", f"behind {setting.prompt_tokens} tokens"
    prefill, token = (
        measured(claim, _ratio(adapter, merged, part), note)
        for claim, part, note in (
            (guide.SLOWER_PREFILL, _prefill, prompt),
            (guide.SLOWER_TOKEN, _token, behind),
        )
    )
    length = setting.prompt_tokens
    return [
        _timed(f"prefill of {prompt}", f"预填充 {length} 个词元", merged, adapter, _prefill, prefill),
        _timed("first token of an answer", "回答的首词元", merged, adapter, _first),
        _timed(f"a token {behind}", f"{length} 个词元之后每个词元", merged, adapter, _token, token),
        _timed("the same without an adapter", "同上，不用适配器", merged, bare, _token),
        Row(
            "switch to another task, its adapter in memory",
            "切换任务，适配器已在内存中",
            "ms",
            None,
            statistics.median(times.switch for times in adapter),
            None,
            None,
        ),
        Row(
            "first token of an answer right behind a switch",
            "切换后立即回答的首词元",
            "ms",
            statistics.median(times.first for times in merged),
            statistics.median(times.first_after for times in adapter),
            median([b.first_after / a.first for a, b in zip(merged, adapter, strict=True)]),
            None,
        ),
    ]


def _prefill(times: Times) -> float:
    return times.prefill


def _token(times: Times) -> float:
    return times.token


def _first(times: Times) -> float:
    return times.first


def _timed(
    english: str,
    chinese: str,
    merged: Sequence[Times],
    switchable: Sequence[Times],
    part: Callable[[Times], float],
    said: Finding | None = None,
) -> Row:
    """Medians over the rounds, and the ratio within a round."""
    first, second = (statistics.median(map(part, times)) for times in (merged, switchable))
    return Row(english, chinese, "ms", first, second, _ratio(switchable, merged, part), said)


def _ratio(over: Sequence[Times], under: Sequence[Times], part: Callable[[Times], float]) -> Estimate:
    return median([part(a) / part(b) for a, b in zip(over, under, strict=True)])


def _row(
    english: str,
    chinese: str,
    unit: Literal["bytes", "ms"],
    merged: float,
    switchable: float,
    said: Finding | None = None,
) -> Row:
    return Row(english, chinese, unit, merged, switchable, exactly(switchable / merged), said)


def _tasks(count: int) -> str:
    return f"{count} task{'s' if count > 1 else ''}"
