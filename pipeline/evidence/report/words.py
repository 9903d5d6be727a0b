"""Every word of the page, in English and Chinese side by side.

A placeholder is `{}` where both languages say things in the same order, `{0}`, `{1}` where not.
Names that the report brings along (stages, artifacts, domains of a data set) are translated when they
are known here and shown as they are when not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

WORDS: Mapping[str, tuple[str, str]] = {
    # The banner
    "title": ("Bundle report", "部署包报告"),
    "language": ("Language", "语言"),
    "headline.pass": ("Admitted", "准入"),
    "headline.fail": ("Refused", "拒绝"),
    "headline.inconclusive": ("Refused", "拒绝"),
    "summary.pass": (
        "All {} checks passed: what ships is what was trained.",
        "{} 项检查全部通过：交付的正是训练所得的模型。",
    ),
    "summary.fail": ("{} of {} checks failed.", "{1} 项检查中有 {0} 项未通过。"),
    "summary.inconclusive": (
        "No check failed, but {} of {} are undecided, and undecided does not pass.",
        "没有检查失败，但 {1} 项中有 {0} 项尚无定论；无定论不等于通过。",
    ),
    "summary.fail.undecided": (
        "{} of {} checks failed, and {} could not be decided.",
        "{1} 项检查中有 {0} 项未通过，另有 {2} 项尚无定论。",
    ),
    "summary.guilty": (
        "The way breaks at “{}”, measured against “{}”.",
        "问题出在“{}”这一步（与“{}”相比）。",
    ),
    # The figures below the banner
    "key.accuracy.note": ("unmerged {}, base {}", "未合并 {}，基座 {}"),
    "key.kl.note": ("nats a position, 99 % below {}", "奈特/位置，99 % 低于 {}"),
    "key.token.note": ("{} the unmerged model’s, behind {} tokens", "为未合并模型的 {}，前文 {} 个词元"),
    "key.memory.note": ("loads in {}", "加载耗时 {}"),
    # Sections
    "way": ("From the unmerged model to the bundle", "从未合并模型到部署包"),
    "way.note": (
        "Each box is one form of the model, measured against the one it names. Red marks the first that"
        " differs by more than the bundle as a whole is allowed to.",
        "每个方框是模型的一种形态，与其所注的形态相比。红色标出首个差异超过部署包允许总量的形态。",
    ),
    "origin": ("the model that was trained", "训练所得的模型"),
    "against": ("against {}", "对比：{}"),
    "guilty": ("breaks here", "问题在此"),
    "gates": ("Checks", "检查"),
    "gates.note": (
        "A check passes when the whole 95 % interval of its figure is on the right side of the threshold.",
        "只有当数值的整个 95 % 区间都在阈值允许的一侧时，检查才算通过。",
    ),
    "fidelity": ("Does it compute what was trained?", "计算结果与训练所得一致吗？"),
    "task": ("Does it still do the job?", "还能胜任任务吗？"),
    "latency": ("How fast is it?", "速度如何？"),
    "footprint": ("Memory and load time", "内存与加载时间"),
    "provenance": ("What it is made of", "由何而来"),
    "figures": ("Figures", "数据"),
    # Table heads
    "check": ("Check", "检查项"),
    "figure": ("Figure", "数值"),
    "interval": ("95 % interval", "95 % 区间"),
    "threshold": ("Threshold", "阈值"),
    "budget": ("Budget used", "已用额度"),
    "verdict": ("Verdict", "结论"),
    "reason": ("Reason", "理由"),
    "form": ("Form", "形态"),
    "reference": ("Against", "对比"),
    "positions": ("Positions", "位置数"),
    "conversations": ("Conversations", "对话数"),
    "error": ("Largest error", "最大误差"),
    "error.rms": ("RMS error", "均方根误差"),
    "short.kl": ("KL", "KL"),
    "short.error": ("error", "误差"),
    "short.top1": ("agree", "一致"),
    "error.relative": ("Largest, relative", "最大相对误差"),
    "error.rms_relative": ("RMS, relative", "均方根相对误差"),
    "kl.mean": ("Mean KL", "平均 KL"),
    "kl.p99": ("KL, 99 %", "KL 的 99 % 分位"),
    "kl.max": ("Largest KL", "最大 KL"),
    "top1": ("Same first token", "首选词元一致"),
    "top5": ("Top-5 overlap", "前五重合度"),
    "flips": ("Flips", "翻转"),
    "ties": ("Flips at near ties", "近似平局处翻转"),
    "perplexity": ("Perplexity", "困惑度"),
    "way.column": ("Way", "方式"),
    "contender": ("Model", "模型"),
    "group": ("Utterances", "指令"),
    "count": ("Number", "数量"),
    "exact": ("Exact call", "调用完全正确"),
    "name": ("Function name", "函数名"),
    "f1": ("Argument F1", "参数 F1"),
    "refusal": ("Refusals", "正确拒答"),
    "valid": ("Valid calls", "调用有效"),
    "prompt": ("Prompt tokens", "提示词元数"),
    "ttft": ("Time to first token", "首词元耗时"),
    "token": ("Time per token", "每词元耗时"),
    "ratio": ("Over unmerged", "与未合并之比"),
    "memory": ("Peak memory", "内存峰值"),
    "load": ("Load time", "加载时间"),
    "sizes": ("Sizes", "大小"),
    "training": ("Training", "训练"),
    "lineage": ("Lineage", "来历"),
    "machine": ("Measured on", "测量环境"),
    "processor": ("Processor", "处理器"),
    "cores": ("Cores", "核心数"),
    "threads": ("Threads used", "所用线程数"),
    "features": ("Instruction sets", "指令集"),
    "system": ("System", "系统"),
    "host.memory": ("Memory", "内存"),
    # Verdicts and their reasons
    "verdict.pass": ("passed", "通过"),
    "verdict.fail": ("failed", "未通过"),
    "verdict.inconclusive": ("undecided", "无定论"),
    "reason.pass": ("within the threshold", "在阈值之内"),
    "reason.fail": ("beyond the threshold", "超出阈值"),
    "reason.inconclusive": (
        "the interval straddles the threshold; about {} times the sample would settle it",
        "区间跨越阈值；约 {} 倍的样本可得定论",
    ),
    "reason.on_threshold": (
        "the interval straddles the threshold; a larger sample would settle it",
        "区间跨越阈值；更大的样本可得定论",
    ),
    "reason.unmeasured": ("not measured", "未测量"),
    "reason.rendering.pass": ("all {} prompts have the same token ids", "{} 条提示的词元编号全部一致"),
    "reason.rendering.fail": ("{} of {} prompts differ, first: {}", "{1} 条提示中有 {0} 条不一致，首条：{2}"),
    "reason.rendering.inconclusive": ("no prompt was compared", "未比较任何提示"),
    "at most": ("at most {}", "至多 {}"),
    "at least": ("at least {}", "至少 {}"),
    "with interval": ("{} ({})", "{}（{}）"),
    "sentence.at most": ("{}: {}; at most {} is allowed.", "{}：{}，上限为 {}。"),
    "sentence.at least": ("{}: {}; at least {} is required.", "{}：{}，下限为 {}。"),
    "sentence.unmeasured": ("{}: not measured.", "{}：未测量。"),
    "sentence.rendering": ("{}: {}.", "{}：{}。"),
    "sentence.inconclusive": ("{}: {}, threshold {}; {}.", "{}：{}，阈值 {}；{}。"),
    # Checks, by their names in the config
    "check.rendering": ("Token ids of prompts on the device", "设备端提示的词元编号"),
    "check.max_relative_error": ("Largest logit error, relative", "logit 最大相对误差"),
    "check.max_mean_kl": ("Mean KL from the unmerged model", "与未合并模型的平均 KL"),
    "check.max_p99_kl": ("99 % quantile of KL", "KL 的 99 % 分位数"),
    "check.min_top1": ("Same most probable token", "最可能词元一致"),
    "check.max_cache_error": ("Cache, {}", "缓存，{}"),
    "check.min_exact_call": ("Exact calls of the bundle", "部署包调用完全正确率"),
    "check.max_exact_call_drop": ("Exact calls lost to the bundle", "部署包损失的正确调用"),
    "check.max_ttft_ratio": (
        "Time to first token over unmerged, {} tokens",
        "首词元耗时与未合并之比，{} 词元",
    ),
    "check.max_token_ratio": ("Time per token over unmerged, {} tokens", "每词元耗时与未合并之比，{} 词元"),
    "decode": ("token by token", "逐词元"),
    "chunks": ("in chunks", "分块"),
    "rewind": ("rewound and refilled", "回退后重填"),
    # Charts and the text around them
    "chart.budget": ("{} of what is allowed", "已用允许量的 {}"),
    "chart.forms": ("KL of each form", "各形态的 KL"),
    "chart.forms.note": (
        "Mean with its interval (dot), 99 % (tick) and largest (line end), in nats."
        " Dashed: what the bundle is allowed.",
        "平均值及区间（点）、99 % 分位（短线）与最大值（线端），单位奈特。虚线：部署包的上限。",
    ),
    "chart.kl": ("KL of the bundle, position by position", "部署包逐位置的 KL"),
    "chart.kl.note": (
        "Share of {} positions in each decade of KL, in nats; everything below 10⁻⁹ is in the first.",
        "{} 个位置按 KL 数量级（奈特）的分布；低于 10⁻⁹ 的都在第一格。",
    ),
    "chart.agreement": ("Same most probable token", "最可能词元一致"),
    "chart.agreement.note": (
        "Share of positions with its interval; near ties (margin under {} logits) count as equal."
        " Dashed: required.",
        "位置占比及区间；近似平局（差距小于 {} logit）算一致。虚线：下限。",
    ),
    "chart.accuracy": ("Exact calls", "调用完全正确"),
    "chart.accuracy.note": (
        "All calls equal to the expected ones, names and arguments. Lines: 95 % intervals.",
        "全部调用的函数名与参数均与预期相同。线段：95 % 区间。",
    ),
    "chart.domain": ("By domain", "按领域"),
    "chart.latency.note": (
        "Bar: median. Whisker: to 99 %, tick at 95 %."
        " In small: ratio to the unmerged model, with its interval.",
        "条形：中位数。须线：至 99 %，短线为 95 %。小字：与未合并模型之比及区间。",
    ),
    "chart.cache": ("One prefill, or another way through the cache", "一次预填充，或以其他方式经过缓存"),
    "chart.cache.note": (
        "Largest logit difference to one prefill of the same tokens, relative.",
        "与同一词元序列一次预填充相比的最大 logit 相对差。",
    ),
    "below": ("KL up to", "KL 不超过"),
    "mean": ("mean", "平均"),
    "p50": ("50 %", "50 %"),
    "p95": ("95 %", "95 %"),
    "p99": ("99 %", "99 %"),
    "behind": ("behind {} tokens", "前文 {} 个词元"),
    "paired": (
        "Paired by utterance, the bundle loses {} ({} to {}); McNemar’s exact test gives p\u00a0=\u00a0{}.",
        "逐条配对，部署包损失 {}（{} 至 {}）；McNemar 精确检验 p\u00a0=\u00a0{}。",
    ),
    "turns": (
        "{} new tokens behind each prompt, models in turn, each in its own process, {} threads.",
        "每个提示后生成 {} 个词元；各模型轮流运行，各占一个进程，{} 个线程。",
    ),
    "lost": ("Right before, wrong in the bundle: {}", "合并前正确、部署包错误：{}"),
    "gained": ("Wrong before, right in the bundle: {}", "合并前错误、部署包正确：{}"),
    "unchanged": (
        "No answer changed from right to wrong or back.",
        "没有答案由对变错，也没有由错变对。",
    ),
    "expected": ("expected", "预期"),
    "answered": ("{} answered", "{}的回答"),
    "more": ("{} more", "另外 {} 条"),
    "nothing": ("nothing", "空"),
    "untrained": ("The adapter was trained elsewhere.", "适配器在别处训练。"),
    "unmeasured": ("Not measured.", "未测量。"),
    "all": ("All", "全部"),
}

NAMES: Mapping[str, tuple[str, str]] = {
    # Forms of the model, contenders, stages and artifacts
    "base": ("base", "基座"),
    "data": ("data", "数据"),
    "tools": ("tools", "工具定义"),
    "adapter": ("adapter", "适配器"),
    "unmerged": ("unmerged", "未合并"),
    "merged": ("merged", "合并后"),
    "onnx": ("ONNX", "ONNX"),
    "candidate": ("candidate", "候选包"),
    "bundle": ("bundle", "部署包"),
    "evidence": ("evidence", "证据"),
    "checkpoint": ("checkpoint", "检查点"),
    # Languages of utterances
    "en": ("English", "英语"),
    "zh": ("Chinese", "中文"),
    # Domains: the first word of a function's name
    "climate": ("climate", "空调"),
    "cruise": ("cruise control", "巡航"),
    "drive": ("drive mode", "驾驶模式"),
    "lane": ("lane assist", "车道辅助"),
    "light": ("lights", "灯光"),
    "media": ("media", "媒体"),
    "nav": ("navigation", "导航"),
    "phone": ("phone", "电话"),
    "radio": ("radio", "收音机"),
    "seat": ("seats", "座椅"),
    "sunroof": ("sunroof", "天窗"),
    "trunk": ("trunk", "后备箱"),
    "vehicle": ("vehicle status", "车辆状态"),
    "window": ("windows", "车窗"),
    "wiper": ("wipers", "雨刷"),
    "several": ("several calls", "多项调用"),
    "refusal": ("refusals", "拒答"),
}


def say(language: Language, key: str, *values: str | int) -> str:
    """The text of `key`, its placeholders filled in order."""
    return WORDS[key][LANGUAGES.index(language)].format(*values)


def name(language: Language, known: str) -> str:
    """The word for a name, or the name itself when it has none."""
    return NAMES[known][LANGUAGES.index(language)] if known in NAMES else known
