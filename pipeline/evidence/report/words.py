"""Every word of the page, in English and Chinese side by side.

A placeholder is `{}` where both languages say things in the same order, `{0}`, `{1}` where not.
Names that the report brings along (stages, artifacts, domains of a data set) are translated when they
are known here and shown as they are when not.
"""

from __future__ import annotations

import re
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
    "culprit.site": (
        "Breaks at “{}”: {}: error {}, {} just before.",
        "问题出在“{}”：{}：误差 {}，此前仅 {}。",
    ),
    "culprit.fail": ("Breaks at “{}”, measured against “{}”.", "问题出在“{}”这一步（与“{}”相比）。"),
    "culprit.inconclusive": (
        "The first step in doubt is “{}”, measured against “{}”.",
        "首个存疑的步骤是“{}”（与“{}”相比）。",
    ),
    "place": ("layer {}, {} ({})", "第 {} 层，{}（{}）"),
    "place.outside": ("{} ({})", "{}（{}）"),
    "missed.more": ("and {} more, in the table below", "另有 {} 项，见下表"),
    # The figures below the banner
    "key.accuracy.note": ("unmerged {}, base {}", "未合并 {}，基座 {}"),
    "key.kl.note": ("nats a position, 99 % below {}", "奈特/位置，99 % 低于 {}"),
    "key.call.note": ("{} the unmerged model’s", "为未合并模型的 {}"),
    "key.memory.note": ("loads in {}", "加载耗时 {}"),
    # Sections
    "way": ("From the unmerged model to the bundle", "从未合并模型到部署包"),
    "way.note": (
        "Each box is one form of the model. Error and KL are against the box before, total KL and agreement"
        " against the unmerged model.",
        "每个方框是模型的一种形态。误差与 KL 相对前一形态；累计 KL 与一致率相对未合并模型。",
    ),
    "origin": ("the model that was trained", "训练所得的模型"),
    "weights": ("{} weights", "{} 权重"),
    "guilty.fail": ("breaks here", "问题在此"),
    "guilty.inconclusive": ("in doubt here", "此处存疑"),
    "after.pass": ("carries it on", "沿袭此误差"),
    "after.fail": ("breaks again", "再次出错"),
    "after.inconclusive": ("undecided", "无定论"),
    # Forms of the model, as boxes of the way
    "form.onnx": ("ONNX float32", "ONNX 单精度"),
    "form.weights_only": ("weights only", "仅权重量化"),
    "form.shipped": ("as shipped", "交付形态"),
    "gates": ("Checks", "检查"),
    "gates.note": (
        "A check passes when the whole 95 % interval of its figure is on the right side of the threshold.",
        "只有当数值的整个 95 % 区间都在阈值允许的一侧时，检查才算通过。",
    ),
    "gates.baseline": ("Also judged against the release {}.", "同时与发布版 {} 作比较。"),
    "fidelity": ("Does it compute what was trained?", "计算结果与训练所得一致吗？"),
    "task": ("Does it still do the job?", "还能胜任任务吗？"),
    "latency": ("How fast is it?", "速度如何？"),
    "own": ("Where the time of a call goes", "一次调用的时间用在何处"),
    "own.note": (
        "From an utterance to checked calls: the bundle alone behind the rounds, {} threads.",
        "从指令到校验过的调用：各轮之后部署包单独运行，{} 个线程。",
    ),
    "footprint": ("Memory and load time", "内存与加载时间"),
    "claims": ("What holds of the reference guide", "参考指南的说法是否成立"),
    "claims.note": (
        "Each checkable statement of the guide, computed or measured on this base and adapter;"
        " the page that cockpit claims --out writes says of what, and why.",
        "指南中每条可核查的说法，均以此基座与适配器计算或实测；对象与缘由见命令另存的页面。",
    ),
    "rounding": ("Where the bits went", "比特用在何处"),
    "rounding.note": (
        "Every matrix was tried in several forms on {} training conversations. What a form costs is the KL,"
        " in nats per position, that it alone is foretold to add, at {} positions of conversations kept"
        " apart.",
        "用 {} 段训练对话逐一试过每个矩阵的几种形式。一种形式的代价，是预计它单独带来的 KL（奈特/位置），"
        "在未参与取整的对话的 {} 个位置上估计。",
    ),
    "rounding.choice": ("{}: {} of matrices, KL {} foretold.", "{}：矩阵共 {}，预计 KL {}。"),
    "rounding.plain": (
        "The closest choice in the bytes that the plain form takes",
        "在普通形式所占字节之内最接近原模型的选择",
    ),
    "rounding.budget_bytes": ("The closest choice of at most {}", "不超过 {} 的选择中最接近原模型者"),
    "rounding.budget_kl": (
        "The smallest choice with a KL of at most {} foretold",
        "预计 KL 不超过 {} 的选择中最小者",
    ),
    "rounding.down": (
        "The cheapest step to fewer bytes is that of {} to {}: {} less for a KL of {} more, {} per megabyte."
        " No other matrix would lose less for its bytes.",
        "减少字节最划算的一步是把 {} 改为 {}：少 {}，KL 增加 {}，即每兆字节 {}；没有矩阵按字节计损失更小。",
    ),
    "rounding.up": (
        "The best step to more bytes is that of {} to {}: {} more for a KL of {} less, {} per megabyte."
        " No other matrix would gain more for its bytes.",
        "增加字节最划算的一步是把 {} 改为 {}：多 {}，KL 减少 {}，即每兆字节 {}；没有矩阵按字节计收益更大。",
    ),
    "rounding.update": (
        "Of the weights that the adapter has changed, rounding changes {} (Frobenius norm); in the directions"
        " of its update BA, {} of BA, which itself is {} of the weights.",
        "适配器改动过的权重，取整使其改变 {}（弗罗贝尼乌斯范数）；在其更新 BA 的方向上，改变 BA 的 {}；"
        "BA 本身为权重的 {}。",
    ),
    "rounding.form": ("{} bits, blocks of {}", "{} 位、每块 {} 个权重"),
    "rounding.step": ("{}: {}, KL {}", "{}：{}，KL {}"),
    "rounding.shown": ("Frontier, {} of {} choices", "边界，{1} 种选择中的 {0} 种"),
    "rounding.matrices": ("Each matrix, and why it has its form", "每个矩阵及其形式的缘由"),
    "rounding.why": (
        "A matrix is not a step smaller where that would lose more KL per megabyte than the bytes buy"
        " elsewhere, and not a step larger where that would buy less, or more bytes than are left.",
        "若缩小一步，每兆字节损失的 KL 多于这些字节在别处的收益，则不缩小；若放大一步，收益不及别处，"
        "或所需字节超出余量，则不放大。",
    ),
    "advice": ("Merged for each task, or switched", "按任务合并，还是运行时切换"),
    "advice.note": (
        "What all tasks of this build cost as a merged bundle each and as one switchable bundle, measured by"
        " cockpit advise with random adapters of their ranks, in {}, context {}, on {}, threads: {}."
        " It says nothing of how right the answers are.",
        "本次构建的全部任务，各自合并为一个部署包，或共用一个可切换部署包，两种形式的代价，用同秩的随机适配器"
        "实测：{}，上下文 {}，{}，线程数 {}。不涉及回答是否正确。",
    ),
    "advice.merged": ("Merged", "合并"),
    "advice.switchable": ("Switchable", "可切换"),
    "advice.ratio": ("Switchable over merged", "可切换 / 合并"),
    "advice.guide": ("The guide says", "指南的说法"),
    "advice.disk": ("Disk, all tasks", "磁盘，全部任务"),
    "advice.memory": ("Resident memory, all tasks ready", "常驻内存，全部任务就绪"),
    "advice.update": ("Update of one task", "更新一个任务"),
    "provenance": ("What it is made of", "由何而来"),
    "figures": ("Figures", "数据"),
    # Table heads
    "check": ("Check", "检查项"),
    "figure": ("Figure", "数值"),
    "threshold": ("Threshold", "阈值"),
    "budget": ("Budget used", "已用额度"),
    "verdict": ("Verdict", "结论"),
    "form": ("Form", "形态"),
    "reference": ("Against", "对比"),
    "positions": ("Positions", "位置数"),
    "conversations": ("Conversations", "对话数"),
    "error": ("Largest error", "最大误差"),
    "error.rms": ("RMS error", "均方根误差"),
    "step.error": ("error", "误差"),
    "step.kl": ("KL", "KL"),
    "origin.kl": ("total KL", "累计 KL"),
    "origin.top1": ("agree", "一致"),
    "error.relative": ("Largest, relative", "最大相对误差"),
    "error.rms_relative": ("RMS, relative", "均方根相对误差"),
    "kl.mean": ("Mean KL", "平均 KL"),
    "kl.p99": ("KL, 99 %", "KL 的 99 % 分位"),
    "kl.max": ("Largest KL", "最大 KL"),
    "top1": ("Same first token", "首选词元一致"),
    "top5": ("Top-5 overlap", "前五重合度"),
    "flips": ("Flips", "翻转"),
    "ties": ("Flips at near ties", "近似平局处翻转"),
    "perplexity": ("Perplexity of the reference", "参照的困惑度"),
    "perplexity.difference": ("Perplexity, difference", "困惑度之差"),
    "layer": ("Layer", "层"),
    "way.column": ("Way", "方式"),
    "contender": ("Model", "模型"),
    "group": ("Utterances", "指令"),
    "count": ("Number", "数量"),
    "exact": ("Exact call", "调用完全正确"),
    "name": ("Function name", "函数名"),
    "f1": ("Argument F1", "参数 F1"),
    "refusal": ("Refusals", "正确拒答"),
    "valid": ("Valid calls", "调用有效"),
    "measured": ("Measured", "测量对象"),
    "ttft": ("Time to first token", "首词元耗时"),
    "token": ("Time per token", "每词元耗时"),
    "call": ("Time of a whole answer", "整条回答耗时"),
    "own.tokens": ("New tokens", "新词元"),
    "own.runs": ("Runs behind the prompt", "提示之后的模型运行"),
    "part.prefill": ("Prefill", "预填充"),
    "part.decode": ("Decode", "解码"),
    "part.grammar": ("Grammar", "语法"),
    "part.python": ("Python", "Python 代码"),
    "ratio": ("Over unmerged", "与未合并之比"),
    "memory": ("Peak memory", "内存峰值"),
    "load": ("Load time", "加载时间"),
    "sizes": ("Sizes", "大小"),
    "training": ("Training", "训练"),
    "lineage": ("Lineage", "来历"),
    "matrix": ("Matrix", "矩阵"),
    "matrix.form": ("Form", "形式"),
    "matrices": ("Matrices", "矩阵数"),
    "bytes": ("Size", "大小"),
    "kl.foretold": ("KL foretold", "预计 KL"),
    "smaller": ("One step smaller", "缩小一步"),
    "larger": ("One step larger", "放大一步"),
    "error.weight": ("Error on W", "W 的误差"),
    "error.update": ("Error on BA", "BA 的误差"),
    "price": ("KL per megabyte", "每兆字节 KL"),
    "chosen": ("chosen", "所选"),
    "machine": ("Measured on", "测量环境"),
    "processor": ("Processor", "处理器"),
    "cores": ("Cores", "核心数"),
    "threads": ("Threads used", "所用线程数"),
    "features": ("Instruction sets", "指令集"),
    "system": ("System", "系统"),
    "host.memory": ("Memory", "内存"),
    # Claims of the guide
    "claim": ("The guide says", "指南的说法"),
    "here": ("Here", "此处"),
    "claim.holds": ("holds", "成立"),
    "claim.fails": ("does not hold here", "此处不成立"),
    "claim.unmeasured": ("cannot be measured here", "此处无法测定"),
    # Verdicts and their reasons
    "verdict.pass": ("passed", "通过"),
    "verdict.fail": ("failed", "未通过"),
    "verdict.inconclusive": ("undecided", "无定论"),
    "reason.pass": ("within the threshold", "在阈值之内"),
    "reason.fail": ("beyond the threshold", "超出阈值"),
    "reason.inconclusive": (
        "the interval straddles the threshold; about {} instead of {} would settle it",
        "区间跨越阈值；样本由 {1} 增至约 {0} 可得定论",
    ),
    "reason.on_threshold": (
        "the figure lies on the threshold; a larger sample may settle it",
        "数值正在阈值上；更大的样本或可得定论",
    ),
    "reason.few": (
        "measured on {}, and {} are the fewest to pass on",
        "仅测量了 {} 个样本，至少 {} 个才可通过",
    ),
    "reason.unmeasured": ("not measured", "未测量"),
    "reason.rendering.pass": ("all {} prompts have the same token ids", "{} 条提示的词元编号全部一致"),
    "reason.rendering.fail": ("{} of {} prompts differ, first: {}", "{1} 条提示中有 {0} 条不一致，首条：{2}"),
    "reason.rendering.inconclusive": ("no prompt was compared", "未比较任何提示"),
    "reason.switching.pass": (
        "all {} answers of {} tasks and the base are as before, to the bit",
        "{1} 个任务与底座的 {0} 条回答与先前逐位一致",
    ),
    "reason.switching.fail": (
        "{} of {} answers differ, first: {}",
        "{1} 条回答中有 {0} 条不一致，首条：{2}",
    ),
    "reason.switching.inconclusive": ("no answer was compared", "未比较任何回答"),
    "at most": ("at most {}", "至多 {}"),
    "at least": ("at least {}", "至少 {}"),
    "with interval": ("{} ({})", "{}（{}）"),
    "sentence.at most": ("{}: {}; at most {} is allowed.", "{}：{}，上限为 {}。"),
    "sentence.at least": ("{}: {}; at least {} is required.", "{}：{}，下限为 {}。"),
    "sentence.unmeasured": ("{}: not measured.", "{}：未测量。"),
    "sentence.counted": ("{}: {}.", "{}：{}。"),
    "sentence.inconclusive": ("{}: {}, threshold {}; {}.", "{}：{}，阈值 {}；{}。"),
    # Checks, by their names in the config
    "check.rendering": ("Token ids of prompts on the device", "设备端提示的词元编号"),
    "check.switching": ("Answers after other tasks", "切换任务之后的回答"),
    "check.max_hop_error": ("Step to {}: largest logit error, relative", "至“{}”一步：logit 最大相对误差"),
    "check.max_weights_kl": ("KL that rounding the weights adds", "权重量化带来的 KL"),
    "check.max_activations_kl": ("KL that rounding the activations adds", "激活量化带来的 KL"),
    "check.max_relative_error": ("Largest logit error, relative", "logit 最大相对误差"),
    "check.max_mean_kl": ("Mean KL from the unmerged model", "与未合并模型的平均 KL"),
    "check.max_p99_kl": ("99 % quantile of KL", "KL 的 99 % 分位数"),
    "check.min_top1": ("Same most probable token", "最可能词元一致"),
    "check.min_identical_answers": ("Greedy answers alike", "贪心回答一致"),
    "check.max_cache_error": ("Cache, {}", "缓存，{}"),
    "check.max_float_cache_error": ("Cache with float activations, {}", "缓存（浮点激活），{}"),
    "check.min_exact_call": ("Exact calls of the bundle", "部署包调用完全正确率"),
    "check.max_exact_call_drop": ("Exact calls lost to the bundle", "部署包损失的正确调用"),
    "check.min_valid": ("Valid answers of the bundle", "部署包的有效回答"),
    "check.max_ttft_ratio": (
        "Time to first token over unmerged, {} tokens",
        "首词元耗时与未合并之比，{} 词元",
    ),
    "check.max_token_ratio": ("Time per token over unmerged, {} tokens", "每词元耗时与未合并之比，{} 词元"),
    "check.max_call_ratio": ("Time of a whole answer over unmerged", "整条回答耗时与未合并之比"),
    "check.max_peak_ratio": ("Peak memory over unmerged", "内存峰值与未合并之比"),
    "check.max_load_ms": ("Time to verify and open the bundle", "校验并打开部署包的耗时"),
    "check.max_kl_growth": ("Mean KL over the baseline’s", "平均 KL 与基线之比"),
    "check.max_exact_call_loss": ("Exact calls lost since the baseline", "相对基线损失的正确调用"),
    "check.max_ttft_growth": (
        "Time to first token over the baseline’s, {} tokens",
        "首词元耗时与基线之比，{} 词元",
    ),
    "check.max_token_growth": (
        "Time per token over the baseline’s, {} tokens",
        "每词元耗时与基线之比，{} 词元",
    ),
    "check.max_call_growth": ("Time of a whole answer over the baseline’s", "整条回答耗时与基线之比"),
    "check.max_peak_growth": ("Peak memory over the baseline’s", "内存峰值与基线之比"),
    # Charts and the text around them
    "chart.budget": ("{} of what is allowed", "已用允许量的 {}"),
    "chart.sites": ("Error of every operator", "每个算子的误差"),
    "chart.sites.note": (
        "Of each step, relative, on a logarithmic scale: from the embedding through the layers, numbered,"
        " to the logits. A lasting jump is where it breaks.",
        "每一步的相对误差（对数坐标）：从嵌入经各层（按编号）到 logit。持续的跃升即问题所在。",
    ),
    "chart.layers": ("Largest error of a layer’s operators", "各层算子的最大误差"),
    "chart.forms": ("KL of each form", "各形态的 KL"),
    "chart.forms.note": (
        "From the unmerged model: mean with its interval (dot), 99 % (tick) and largest (line end), in nats."
        " Dashed: what the bundle is allowed.",
        "相对未合并模型：平均值及区间（点）、99 % 分位（短线）与最大值（线端），单位奈特。虚线：上限。",
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
        "Strip: all runs, darkest at the median; ticks at 95 and 99 %."
        " In small: ratio to the unmerged model, with its interval.",
        "色带：全部测量，中位数处最深；短线为 95 与 99 %。小字：与未合并模型之比及区间。",
    ),
    "chart.call.note": (
        "From utterance to the last token: the bundle under the tools’ grammar and to checked calls, as in a"
        " car.",
        "从指令到最后一个词元；部署包受工具语法约束，直至调用校验完毕，与车内一致。",
    ),
    "chart.own": ("Mean time of a call", "一次调用的平均耗时"),
    "chart.own.note": (
        "Its parts: the model on the prompt, the model behind it, the grammar, and all the rest.",
        "其组成：模型处理提示、模型逐步解码、语法约束，以及其余全部代码。",
    ),
    "own.times": ("median {}, 95 % below {}", "中位数 {}，95 % 低于 {}"),
    "chart.cache": ("One prefill, or another way through the cache", "一次预填充，或以其他方式经过缓存"),
    "chart.cache.note": (
        "Largest logit difference to one prefill of the same tokens, relative.",
        "与同一词元序列一次预填充相比的最大 logit 相对差。",
    ),
    "chart.frontier": ("What bytes buy", "字节换来什么"),
    "chart.frontier.note": (
        "KL foretold, in nats on a logarithmic scale, of every choice that no other is smaller and closer"
        " than, by the size of all matrices. Dashed: the choice made.",
        "没有更小且更接近者的全部选择：预计 KL（奈特，对数坐标）与全部矩阵大小。虚线：所作的选择。",
    ),
    "chart.ranks": ("Ranks that AdaLoRA left", "AdaLoRA 留下的秩"),
    "chart.ranks.note": ("Number of layers that have each.", "具有各个秩的层数。"),
    "rank": ("rank {}", "秩 {}"),
    "chart.onto": ("What the QLoRA adapter is merged onto", "QLoRA 适配器合并到何处"),
    "chart.onto.note": (
        "Mean KL from the unmerged QLoRA model, in nats per position; the closer one is shipped.",
        "与未合并 QLoRA 模型的平均 KL（奈特/位置）；交付更接近者。",
    ),
    "onto.base": ("W0", "W0"),
    "onto.nf4": ("4-bit weights", "4 位权重"),
    "below": ("KL up to", "KL 不超过"),
    "mean": ("mean", "平均"),
    "p50": ("50 %", "50 %"),
    "p95": ("95 %", "95 %"),
    "p99": ("99 %", "99 %"),
    "behind": ("behind {} tokens", "前文 {} 个词元"),
    "utterances": ("{} utterances", "{} 条指令"),
    "paired": (
        "Paired by utterance, the bundle loses {} ({} to {}); McNemar’s exact test gives p\u00a0=\u00a0{}.",
        "逐条配对，部署包损失 {}（{} 至 {}）；McNemar 精确检验 p\u00a0=\u00a0{}。",
    ),
    "generations": (
        "Without a grammar, {} ({}) of {} greedy answers are the unmerged model’s, token for token.",
        "不加语法约束时，{2} 条贪心回答中有 {0}（{1}）与未合并模型逐词元一致。",
    ),
    "generations.first": (
        "Those that differ do so after {} tokens (median).",
        "不一致的回答在 {} 个词元之后（中位数）才出现差异。",
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
    "switchable": ("switchable", "可切换"),
    "onnx": ("ONNX", "ONNX"),
    "candidate": ("candidate", "候选包"),
    "bundle": ("bundle", "部署包"),
    "evidence": ("evidence", "证据"),
    "rounding": ("rounding", "取整"),
    "checkpoint": ("checkpoint", "检查点"),
    # Ways through the cache
    "decode": ("token by token", "逐词元"),
    "chunks": ("in chunks", "分块"),
    "rewind": ("rewound and refilled", "回退后重填"),
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


def form(language: Language, known: str) -> str:
    """The word for a form of the model, as a step of the way."""
    key = f"form.{known}"
    return say(language, key) if key in WORDS else name(language, known)


def reason(language: Language, given: str) -> str:
    """A check's reason, which the gate gives in English, or the reason itself when it is not known."""
    for key, (english, _) in WORDS.items():
        if key.startswith("reason."):
            pattern = re.escape(english).replace(r"\{\}", "(.*?)")
            if found := re.fullmatch(pattern, given, re.DOTALL):
                return say(language, key, *found.groups())
    return given


def name(language: Language, known: str) -> str:
    """The word for a name, or the name itself when it has none."""
    return NAMES[known][LANGUAGES.index(language)] if known in NAMES else known
