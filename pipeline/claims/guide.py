"""The reference guide's checkable statements, as data, in its own order.

Bounds are what bears a statement out: a figure given to n digits holds to rounding, "about" within a
tenth, a range as it stands, a comparison on its side of 1. Recommendations (which rank, which layers) are
no statements of fact and are not here; where the guide says what follows from a choice, that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.claims.finding import Claim

D = K = 512
RANK = 16
"""The guide's example layer and rank."""

PARAMETERS_1_5B = 1_500_000_000
LORA_PARAMETERS_1_5B = 8_388_608
"""The guide's counts for its 1.5 B model."""

SMALL_RANK, LARGE_RANK = 8, 64
"""The ends of the guide's ranges of small and of large ranks."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

W0 = ((1.0, 2.0), (3.0, 4.0))
A = ((0.1, 0.2),)
B = ((0.5,), (0.6,))
INPUT = ((1.0,), (2.0,))
ALONE = ((0.25,), (0.3,))
CORRECT = ((5.25,), (11.3,))
"""The guide's worked example: B A x alone, and (W0 + B A) x."""


@dataclass(frozen=True)
class Decoder:
    """Shapes (out, in) of a decoder's projections, one of each a layer, and what it has in all."""

    projections: tuple[tuple[int, int], ...]
    layers: int
    parameters: int


QWEN_1_5B = Decoder(
    ((1536, 1536), (256, 1536), (256, 1536), (1536, 1536), (8960, 1536), (8960, 1536), (1536, 8960)),
    layers=28,
    parameters=1_543_714_304,
)
"""Qwen2.5-1.5B, the 1.5 B model of our configs (arXiv 2412.15115 and its config.json)."""

_PARAMETERS = "参数量对比 (parameters)"
COMPRESSION = Claim(
    _PARAMETERS,
    "A 512 × 512 weight at rank 16: 262,144 parameters become 16,384",
    "512×512 的权重、秩 16：262,144 个参数变为 16,384 个",
    "16 ×",
    "ratio",
    16.0,
    16.0,
)
FORMULA = Claim(
    _PARAMETERS,
    "An update has r × (d + k) parameters",
    "LoRA 参数量为 r×(d+k)",
    "r × (d + k)",
    "ratio",
    1.0,
    1.0,
)

_TARGETS = "训练目标范围 (what is trained)"
ONLY_TARGETS = Claim(
    _TARGETS,
    "Norms, embeddings, head and biases stay as they are; only adapted projections change",
    "归一化、词嵌入、输出层与偏置不变，只有目标投影层改变",
    "0 others",
    "count",
    0.0,
    0.0,
)

_SHARE = "实际参数比例 (share of parameters)"
SHARE_ARITHMETIC = Claim(
    _SHARE,
    "8,388,608 of 1,500,000,000 parameters are trained",
    "1,500,000,000 个参数中训练 8,388,608 个",
    "0.56 %",
    "share",
    0.00555,
    0.00565,
)
SHARE_1_5B = Claim(
    _SHARE,
    "LoRA trains 0.56 % of a 1.5 B model, with the guide's rank 16 and seven projections",
    "以秩 16、七个投影层训练 1.5B 模型，训练比例为 0.56%",
    "0.56 %",
    "share",
    0.00555,
    0.00565,
)
SHARE_HERE = Claim(
    _SHARE,
    "LoRA trains about half a percent of a model",
    "LoRA 只训练模型的约 0.56%",
    "0.56 %",
    "share",
    0.00504,
    0.00616,
)

_START = "模型初始化 (initialization)"
STARTS_AS_BASE = Claim(
    _START,
    "Adding adapters to the frozen base changes nothing before the first step",
    "添加适配器后、训练之前，模型与基座一致",
    "no change",
    "number",
    0.0,
    0.0,
)

_BACKWARD = "反向传播 (backward pass)"
FROZEN = Claim(
    _BACKWARD,
    "Gradients reach A and B alone; W0 has none",
    "梯度只更新 A 和 B，W0 没有梯度",
    "0",
    "bytes",
    0.0,
    0.0,
)

_MEMORY = "内存效率 (memory of training)"
GRADIENTS_FULL = Claim(
    _MEMORY,
    "The gradients of all parameters of a 1.5 B model take 12 GB",
    "1.5B 模型全部参数的梯度约需 12GB",
    "about 12 GB",
    "bytes",
    10.8e9,
    13.2e9,
)
GRADIENTS_LORA = Claim(
    _MEMORY,
    "The gradients of its LoRA parameters take 67 MB",
    "LoRA 参数的梯度约需 67MB",
    "about 67 MB",
    "bytes",
    60.3e6,
    73.7e6,
)
MEMORY_ARITHMETIC = Claim(
    _MEMORY,
    "Between these two lies a factor of 180",
    "两者相差约 180 倍",
    "about 180 ×",
    "ratio",
    162.0,
    198.0,
)
MEMORY_STATE = Claim(
    _MEMORY,
    "LoRA needs 180 times less memory for gradients and optimizer",
    "LoRA 的梯度与优化器内存减少约 180 倍",
    "about 180 ×",
    "ratio",
    162.0,
    198.0,
)
MEMORY_PEAK = Claim(
    _MEMORY,
    "LoRA needs 180 times less memory to train",
    "LoRA 训练内存减少约 180 倍",
    "about 180 ×",
    "ratio",
    162.0,
    198.0,
)

_SPEED = "训练速度 (speed of training)"
STEP_SECONDS = Claim(
    _SPEED,
    "A step of a 1.5 B model takes 2–3 s in full and 0.1–0.2 s with LoRA",
    "1.5B 模型全参数每步 2–3 秒，LoRA 每步 0.1–0.2 秒",
    "2–3 s, 0.1–0.2 s",
    "number",
    None,
    None,
)
SPEEDUP = Claim(
    _SPEED, "LoRA steps 15 to 20 times as fast", "LoRA 训练速度提升 15–20 倍", "15–20 ×", "ratio", 15.0, 20.0
)

_STORAGE = "存储效率 (storage)"
ADAPTER_BYTES = Claim(
    _STORAGE,
    "An adapter's file has a few to some tens of megabytes",
    "LoRA 权重文件通常几 MB 到几十 MB",
    "1–100 MB",
    "bytes",
    1e6,
    100e6,
)

_MERGED = "合并后推理 (merged inference)"
MERGED_FUNCTION = Claim(
    _MERGED,
    "Merged and unmerged compute the same",
    "合并后与未合并的输出一致",
    "the same",
    "number",
    0.0,
    1e-4,
)
MERGED_FORMULA = Claim(
    _MERGED,
    "The merged weight is W0 + B A, with nothing before B A",
    "合并公式为 W0 + B@A，前面没有系数",
    "1 × B A",
    "ratio",
    1.0,
    1.0,
)
MERGED_PRODUCTS = Claim(
    _MERGED, "Merged, a layer is one product", "合并后每层只需一次矩阵乘法", "1", "number", 1.0, 1.0
)
STANDARD_FORMAT = Claim(
    _MERGED,
    "The merged model is a standard checkpoint: the base's tensors, nothing else",
    "合并后是标准模型格式：张量与基座相同",
    "0 differ",
    "count",
    0.0,
    0.0,
)

_UNMERGED = "运行时合并（不合并） (unmerged inference)"
UNMERGED_PRODUCTS = Claim(
    _UNMERGED, "Unmerged, a layer is three products", "不合并时每层需要三次矩阵乘法", "3", "number", 3.0, 3.0
)
SWITCHING = Claim(
    _UNMERGED,
    "Adapters are switched at run time: there and back, nothing is lost",
    "可以动态切换不同的 LoRA 权重，切换后结果不变",
    "no change",
    "number",
    0.0,
    0.0,
)

_ALONE = "为什么不能单独使用LoRA权重？ (why not B A alone)"
EXAMPLE_ALONE = Claim(
    _ALONE,
    "In the example, B A x alone is [[0.25], [0.3]]",
    "例中单独使用 LoRA 得到 [[0.25], [0.3]]",
    "[[0.25], [0.3]]",
    "number",
    0.0,
    1e-12,
)
EXAMPLE_CORRECT = Claim(
    _ALONE,
    "In the example, (W0 + B A) x is [[5.25], [11.3]]",
    "例中正确结果为 [[5.25], [11.3]]",
    "[[5.25], [11.3]]",
    "number",
    0.0,
    1e-12,
)
ALONE_HERE = Claim(
    _ALONE,
    "B A alone is not the model: it predicts worse than base and adapter together",
    "单独使用 LoRA 权重是错误的",
    "not equal",
    "ratio",
    1.1,
    None,
)

_INFERENCE = "推理速度对比 (speed of inference)"
COMPLEXITY = Claim(
    _INFERENCE,
    "Unmerged, the 512 × 512 layer at rank 16 costs d·r·k + d·k multiplications instead of d·k",
    "运行时合并的计算复杂度为 O(d×r×k + d×k)",
    "17 ×",
    "ratio",
    17.0,
    17.0,
)
SLOWER_PREFILL = Claim(
    _INFERENCE,
    "Unmerged is 2–3 times slower than merged: a prompt",
    "运行时合并比合并后慢 2–3 倍：处理提示",
    "2–3 ×",
    "ratio",
    2.0,
    3.0,
)
SLOWER_TOKEN = Claim(
    _INFERENCE,
    "Unmerged is 2–3 times slower than merged: a token",
    "运行时合并比合并后慢 2–3 倍：每个词元",
    "2–3 ×",
    "ratio",
    2.0,
    3.0,
)

_INFERENCE_MEMORY = "内存使用对比 (memory of inference)"
WEIGHTS_EXAMPLE = Claim(
    _INFERENCE_MEMORY,
    "Unmerged weights of the 512 × 512 layer at rank 16 take 1.06 times the merged",
    "512×512、秩 16 时，不合并的权重为合并后的 1.06 倍",
    "1.06 ×",
    "ratio",
    1.055,
    1.065,
)
WEIGHTS_HERE = Claim(
    _INFERENCE_MEMORY,
    "Unmerged weights of a model take 1.06 times the merged",
    "整个模型不合并的权重为合并后的 1.06 倍",
    "1.06 ×",
    "ratio",
    1.055,
    1.065,
)
PEAK_HERE = Claim(
    _INFERENCE_MEMORY,
    "Unmerged inference takes 1.06 times the memory of merged",
    "运行时合并的推理内存为合并后的 1.06 倍",
    "1.06 ×",
    "ratio",
    1.055,
    1.065,
)

_CHOICES = "参数选择原则 (choice of parameters)"
RANK_TIME = Claim(
    _CHOICES,
    "A small rank (8) trains faster than a large one (64)",
    "较小的秩（8）比较大的秩（64）训练更快",
    "faster",
    "ratio",
    None,
    1.0,
)
RANK_MEMORY = Claim(
    _CHOICES,
    "A small rank (8) needs less memory than a large one (64)",
    "较小的秩（8）比较大的秩（64）内存更少",
    "less",
    "ratio",
    None,
    1.0,
)
RANK_QUALITY = Claim(
    _CHOICES,
    "A large rank (64) learns better than a small one (8)",
    "较大的秩（64）比较小的秩（8）效果更好",
    "better",
    "ratio",
    None,
    1.0,
)
ATTENTION_FIRST = Claim(
    _CHOICES,
    "Attention layers matter most: adapted alone, they do better than the MLP alone",
    "注意力层最重要：只训练注意力层优于只训练 MLP 层",
    "better",
    "ratio",
    None,
    1.0,
)
MLP_ADDS = Claim(
    _CHOICES,
    "MLP layers add to what attention layers can learn",
    "MLP 层提供额外的适应能力",
    "better",
    "ratio",
    None,
    1.0,
)
RATE = Claim(
    _CHOICES,
    "LoRA's learning rate is one or two orders of magnitude below full fine-tuning's",
    "LoRA 学习率比全参数微调小 1–2 个数量级",
    "0.01–0.1 ×",
    "ratio",
    0.01,
    0.1,
)

_EFFECT = "效果评估 (effects)"
TIME_SAVED = Claim(
    _EFFECT, "LoRA saves 90 % of training time", "训练时间减少 90% 以上", "≥ 90 %", "share", 0.9, 1.0
)
MEMORY_SAVED_STATE = Claim(
    _EFFECT,
    "LoRA saves 95 % of the memory of gradients and optimizer",
    "梯度与优化器的内存减少 95% 以上",
    "≥ 95 %",
    "share",
    0.95,
    1.0,
)
MEMORY_SAVED_PEAK = Claim(
    _EFFECT,
    "LoRA saves 95 % of the memory of training",
    "训练内存减少 95% 以上",
    "≥ 95 %",
    "share",
    0.95,
    1.0,
)
STORAGE_SAVED = Claim(
    _EFFECT, "An adapter saves 99 % of storage", "存储空间减少 99% 以上", "≥ 99 %", "share", 0.99, 1.0
)
CLOSE = Claim(
    _EFFECT,
    "LoRA comes close to full fine-tuning: perplexity within a tenth, same data, same steps",
    "效果接近全参数微调：同样数据与步数，困惑度相差不超过一成",
    "close",
    "ratio",
    None,
    1.1,
)
EXCEEDS = Claim(
    _EFFECT,
    "On some tasks LoRA is better than full fine-tuning: on this one",
    "在某些任务上超过全参数微调：在本任务上",
    "better",
    "ratio",
    None,
    1.0,
)
GENERALIZES = Claim(_EFFECT, "LoRA keeps generalizing well", "泛化能力保持良好", "well", "ratio", None, None)
AS_BASE_PREFILL = Claim(
    _EFFECT,
    "Merged is as fast as the base: a prompt",
    "合并后推理速度与原始模型相同：处理提示",
    "1 ×",
    "ratio",
    0.95,
    1.05,
)
AS_BASE_TOKEN = Claim(
    _EFFECT,
    "Merged is as fast as the base: a token",
    "合并后推理速度与原始模型相同：每个词元",
    "1 ×",
    "ratio",
    0.95,
    1.05,
)

_VARIANTS = "发展趋势 (variants)"
QLORA = Claim(
    _VARIANTS,
    "QLoRA takes less memory: its base is quantized",
    "QLoRA 结合量化，进一步减少内存使用",
    "less",
    "ratio",
    None,
    1.0,
)
ADALORA = Claim(
    _VARIANTS, "AdaLoRA trains more efficiently", "AdaLoRA 提高训练效率", "more", "ratio", None, None
)
DORA = Claim(_VARIANTS, "DoRA uses parameters better", "DoRA 更好地利用参数", "better", "ratio", None, None)
LORA_PLUS = Claim(_VARIANTS, "LoRA+ trains more stably", "LoRA+ 训练更稳定", "more", "ratio", None, None)

CLAIMS = tuple(value for value in list(vars().values()) if isinstance(value, Claim))
"""Every claim above, in order."""
