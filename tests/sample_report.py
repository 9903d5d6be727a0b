"""Reports such as a build makes, judged by the real gate: admitted, refused, undecided, and bare."""

import random
from dataclasses import replace

from pipeline.config import Gate
from pipeline.evidence.gate import judge
from pipeline.evidence.parity import KL_EDGES
from runtime.report import (
    SCHEMA_VERSION,
    Answer,
    CacheCheck,
    Comparison,
    ContenderScore,
    Distribution,
    Estimate,
    Footprint,
    Histogram,
    LatencyPoint,
    LatencyReport,
    Machine,
    ParityReport,
    RenderingCheck,
    Report,
    Score,
    TaskReport,
)

SCRIPT = "<script>document.title='owned'</script>"
DOMAINS = ("climate", "window", "seat", "media", "nav", "phone", "light", "drive", "vehicle")


def around(value: float, spread: float, most: float = 1.0) -> Estimate:
    return Estimate(value, max(0.0, value - spread), min(most, value + spread))


def histogram(mean: float) -> Histogram:
    """Positions whose KL is spread log-normally, as a quantized model's is."""
    draws = random.Random(7)
    counts = [0] * (len(KL_EDGES) - 1)
    for _ in range(4000):
        kl = mean * draws.lognormvariate(-2.0, 2.0)
        counts[next(i for i, edge in enumerate(KL_EDGES[1:]) if kl <= edge or i == len(counts) - 1)] += 1
    return Histogram(KL_EDGES, tuple(counts))


def comparison(name: str, against: str, kl: float, error: float, agree: float) -> Comparison:
    return Comparison(
        name=name,
        against=against,
        conversations=60,
        positions=4000,
        max_absolute_error=24.0 * error,
        rms_absolute_error=2.1 * error,
        relative_error=error,
        rms_relative_error=error / 6,
        kl_mean=Estimate(kl, kl * 0.86, kl * 1.15),
        kl_p99=kl * 11,
        kl_max=kl * 60,
        kl_histogram=histogram(kl),
        top1=around(agree, (1 - agree) * 0.25),
        top5=1 - (1 - agree) * 1.8,
        flips=round(4000 * (1 - agree)),
        near_tie_flips=round(400 * (1 - agree)),
        near_tie=1e-3,
        reference_perplexity=1.21,
        perplexity=1.21 + kl,
    )


def score(utterances: int, exact: float, refusal: float | None) -> Score:
    return Score(
        utterances=utterances,
        exact_call=around(exact, 0.9 / utterances**0.5 * (exact * (1 - exact)) ** 0.5 * 2),
        function_name=min(1.0, exact + 0.06),
        argument_f1=min(1.0, exact + 0.04),
        refusal=refusal,
        valid=min(1.0, exact + 0.1),
    )


def contender(name: str, exact: float, domains: tuple[str, ...], refusal: float | None) -> ContenderScore:
    draws = random.Random(name == "base")
    return ContenderScore(
        name=name,
        overall=score(240, exact, refusal),
        by_language={"en": score(180, min(1.0, exact * 1.02), refusal), "zh": score(60, exact * 0.94, None)},
        by_domain={
            domain: score(27, max(0.0, min(1.0, exact + draws.uniform(-0.12, 0.09))), None)
            for domain in domains
        },
    )


def answer(number: int, utterance: str, expected: str, unmerged: str, bundle: str) -> Answer:
    return Answer(
        id=f"test-{number}",
        utterance=utterance,
        expected=expected,
        answers={"base": "", "unmerged": unmerged, "bundle": bundle},
        exact={"base": False, "unmerged": unmerged == expected, "bundle": bundle == expected},
    )


def temperature(zone: str, celsius: float) -> str:
    return f'[{{"name": "climate_set_temperature", "arguments": {{"zone": "{zone}", "celsius": {celsius}}}}}]'


ANSWERS = (
    answer(1, "set the driver side to 22 degrees", *[temperature("driver", 22)] * 3),
    answer(2, "warm up the back to 24, please", *[temperature("rear", 24)] * 2, temperature("all", 24)),
    answer(3, "副驾调到二十一度半", *[temperature("passenger", 21.5)] * 2, temperature("passenger", 21)),
    answer(4, "a bit quieter", '[{"name": "media_adjust_volume", "arguments": {"steps": -1}}]', "[]",
           '[{"name": "media_adjust_volume", "arguments": {"steps": -1}}]'),
    answer(5, f"play {SCRIPT} & “friends”", '[{"name": "media_play", "arguments": {"query": "friends"}}]',
           '[{"name": "media_play", "arguments": {"query": "friends"}}]', f"[{SCRIPT}"),
    answer(6, "call mum\x00\x1b[31m", *['[{"name": "phone_call", "arguments": {"contact": "mum"}}]'] * 2, ""),
)  # fmt: skip


def times(p50: float, samples: int) -> Distribution:
    return Distribution(samples, p50, p50 * 1.09, p50 * 1.31)


def point(tokens: int, bundle_ttft: float, bundle_token: float) -> LatencyPoint:
    ttft = {"unmerged": tokens * 2.1, "merged": tokens * 1.75, "bundle": tokens * 2.1 * bundle_ttft}
    token = {"unmerged": 46.1, "merged": 38.5, "bundle": 46.1 * bundle_token}
    return LatencyPoint(
        prompt_tokens=tokens,
        new_tokens=16,
        ttft={name: times(value, 5) for name, value in ttft.items()},
        token={name: times(value, 75) for name, value in token.items()},
        ttft_ratio={name: around(ttft[name] / ttft["unmerged"], 0.03, 99.0) for name in ("merged", "bundle")},
        token_ratio={
            name: around(token[name] / token["unmerged"], 0.02, 99.0) for name in ("merged", "bundle")
        },
    )


MACHINE = Machine(
    processor="Example Processor 9000 <8 cores> & more",
    cores=2,
    features=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
    system="Linux 6.1.0 x86_64",
    memory_bytes=24_696_061_952,
    versions={
        "python": "3.11.7",
        "onnxruntime": "1.32.0",
        "torch": "2.13.0",
        "transformers": "5.24.0",
        "peft": "0.21.2",
    },
)


def report(parity: ParityReport, task: TaskReport, latency: LatencyReport) -> Report:
    stages = ("base", "data", "adapter", "merged", "onnx", "candidate", "evidence")
    sizes = (542_314_880, 1_204_551, 19_614_832, 538_093_208, 171_400_352, 175_012_004, 512_332)
    return Report(
        schema_version=SCHEMA_VERSION,
        name="smollm2-135m",
        parity=parity,
        task=task,
        latency=latency,
        gate=judge("int8", Gate(min_exact_call=0.8), parity, task, latency),
        lineage={stage: f"{index + 1:x}f0e" * 16 for index, stage in enumerate(stages)},
        sizes=dict(zip(stages, sizes, strict=True)),
        training={
            "steps": 310.0,
            "loss": 0.0213,
            "seconds": 281.4,
            "tokens": 158_720.0,
            "trainable_share": 0.035,
        },
    )


def admitted() -> Report:
    """A good int8 bundle."""
    parity = ParityReport(
        comparisons=(
            comparison("merged", "unmerged", 3.1e-9, 2.4e-6, 1.0),
            comparison("ONNX float32", "merged", 8.8e-9, 3.9e-6, 1.0),
            comparison("ONNX int8, weights only", "ONNX float32", 6.2e-4, 0.021, 0.9948),
            comparison("ONNX int8", "ONNX int8, weights only", 7.4e-4, 0.026, 0.9943),
            comparison("bundle", "unmerged", 1.3e-3, 0.034, 0.9921),
        ),
        cache=(
            CacheCheck("decode", 8, 512, 2.2e-3, 0),
            CacheCheck("chunks", 8, 76, 1.9e-3, 0),
            CacheCheck("rewind", 8, 258, 2.2e-3, 0),
        ),
        rendering=RenderingCheck(240, 0, ""),
    )
    task = TaskReport(
        contenders=(
            contender("base", 0.03, DOMAINS, 0.12),
            contender("unmerged", 0.908, DOMAINS, 0.97),
            contender("bundle", 0.904, DOMAINS, 0.97),
        ),
        exact_call_drop=Estimate(0.0042, -0.0125, 0.0208),
        mcnemar_p=0.625,
        answers=ANSWERS,
    )
    latency = LatencyReport(
        machine=MACHINE,
        threads=2,
        points=(point(64, 0.29, 0.14), point(256, 0.27, 0.15)),
        footprints={
            "unmerged": Footprint(1840.0, 1_912_000_000),
            "merged": Footprint(1210.0, 1_655_000_000),
            "bundle": Footprint(231.0, 402_000_000),
        },
    )
    return report(parity, task, latency)


def refused() -> Report:
    """Activations quantized wrongly, a chat template that differs, and a slow first token."""
    good = admitted()
    comparisons = (
        *good.parity.comparisons[:3],
        comparison("ONNX int8", "ONNX int8, weights only", 0.41, 0.63, 0.81),
        comparison("bundle", "unmerged", 0.43, 0.66, 0.80),
    )
    cache = (CacheCheck("decode", 8, 512, 0.31, 17), *good.parity.cache[1:])
    parity = ParityReport(comparisons, cache, RenderingCheck(240, 3, f"turn {SCRIPT} on"))
    scores = (*good.task.contenders[:2], contender("bundle", 0.61, DOMAINS, 0.55))
    changed = tuple(
        answer(
            10 + step,
            f"{16 + step} degrees for me",
            *[temperature("driver", 16 + step)] * 2,
            temperature("all", 16),
        )
        for step in range(12)
    )
    task = TaskReport(scores, Estimate(0.298, 0.241, 0.357), 3.1e-16, ANSWERS + changed)
    latency = replace(good.latency, points=(point(64, 1.31, 0.14), point(256, 0.99, 0.15)))
    return report(parity, task, latency)


def undecided() -> Report:
    """Too few utterances and runs to tell; no prompt compared; one length not measured for the bundle."""
    good = admitted()
    task = replace(good.task, exact_call_drop=Estimate(0.0417, 0.0, 0.0833))
    unmeasured = replace(good.latency.points[1], ttft_ratio={}, token_ratio={})
    latency = replace(good.latency, points=(good.latency.points[0], unmeasured))
    return report(replace(good.parity, rendering=RenderingCheck(0, 0, "")), task, latency)


def bare() -> Report:
    """An adapter from elsewhere and data without domains or refusals; nothing timed, no answer changed."""
    good = admitted()
    names = (("base", 0.0), ("unmerged", 1.0), ("bundle", 1.0))
    contenders = tuple(
        ContenderScore(name, score(40, exact, None), {"en": score(40, exact, None)}, {})
        for name, exact in names
    )
    made = report(
        replace(good.parity, comparisons=good.parity.comparisons[-1:], cache=()),
        TaskReport(contenders, Estimate(0.0, 0.0, 0.0), 1.0, ANSWERS[:1]),
        LatencyReport(MACHINE, 2, (), {}),
    )
    return replace(made, training={}, sizes={"bundle": 175_012_004}, lineage={"bundle": "ab" * 32})
