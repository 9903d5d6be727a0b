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
    CallLatency,
    Comparison,
    ContenderScore,
    Distribution,
    Estimate,
    Footprint,
    Generations,
    Histogram,
    Hop,
    LatencyPoint,
    LatencyReport,
    Machine,
    OwnCalls,
    ParityReport,
    RenderingCheck,
    Report,
    Score,
    SiteError,
    TaskReport,
    Training,
    distribution,
)

SCRIPT = "<script>document.title='owned'</script>"
DOMAINS = ("climate", "window", "seat", "media", "nav", "phone", "light", "drive", "vehicle")


SITES = (
    ("attention.input", "SimplifiedLayerNormalization"),
    ("attention.qkv", "MatMul"),
    ("attention.mixed", "GroupQueryAttention"),
    ("attention.output", "MatMul"),
    ("mlp.input", "SkipSimplifiedLayerNormalization"),
    ("mlp.gate_up", "MatMul"),
    ("mlp.product", "Mul"),
    ("mlp.output", "MatMul"),
)
"""Of one layer, in order."""


def around(value: float, spread: float, most: float = 1.0, units: int = 60) -> Estimate:
    return Estimate(value, max(0.0, value - spread), min(most, value + spread), units)


def scaled(value: float, down: float = 0.9, up: float = 1.1, units: int = 60) -> Estimate:
    """An estimate whose interval is a share of it."""
    return Estimate(value, value * down, value * up, units)


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
        max_absolute_error=scaled(24.0 * error, up=1.0),
        rms_absolute_error=scaled(2.1 * error),
        relative_error=scaled(error, up=1.0),
        rms_relative_error=scaled(error / 6),
        kl_mean=scaled(kl, 0.86, 1.15),
        kl_p99=scaled(kl * 11, 0.8, 1.3),
        kl_max=scaled(kl * 60, 0.5, 1.0),
        kl_histogram=histogram(kl),
        top1=around(agree, (1 - agree) * 0.25),
        top5=around(1 - (1 - agree) * 1.8, (1 - agree) * 0.3),
        flips=round(4000 * (1 - agree)),
        near_tie_flips=round(400 * (1 - agree)),
        near_tie=1e-3,
        reference_perplexity=1.21,
        perplexity_difference=Estimate(kl, -kl / 2, kl * 2.5, 60),
    )


def sites(error: float, broken: tuple[int, str] | None = None) -> tuple[SiteError, ...]:
    """Errors that grow from `error` at the embedding, through 30 layers, to the logits.

    Args:
        error: of the embedding, relative.
        broken: a layer and its site where the error jumps to 0.31 and stays.
    """
    draws, jumped = random.Random(3), False
    found = [SiteError(None, "embedding", "Gather", error)]
    for layer in range(30):
        for site, operator in SITES:
            honest = error * (1 + layer / 5) * draws.uniform(0.7, 1.4)
            wrong = 0.31 if (layer, site) == broken else 0.2 * draws.uniform(0.7, 1.4)
            jumped = jumped or (layer, site) == broken
            found.append(SiteError(layer, site, operator, wrong if jumped else honest))
    last = found[-1].error
    return (*found, SiteError(None, "hidden_states", "SkipSimplifiedLayerNormalization", last),
            SiteError(None, "logits", "head", last * 0.9))  # fmt: skip


def hop(
    name: str,
    against: str,
    weights: str,
    step: tuple[float, float, float],
    origin: tuple[float, float, float],
    errors: tuple[SiteError, ...] = (),
) -> Hop:
    """A hop by the mean KL, largest relative error and agreement of its step and since the origin."""
    return Hop(comparison(name, against, *step), comparison(name, "unmerged", *origin), weights, errors)


def score(utterances: int, exact: float, refusal: float | None) -> Score:
    def share(value: float) -> Estimate:
        spread = 1.96 * (value * (1 - value) / utterances) ** 0.5
        return around(value, spread, units=utterances)

    return Score(
        utterances=utterances,
        exact_call=share(exact),
        function_name=share(min(1.0, exact + 0.06)),
        argument_f1=share(min(1.0, exact + 0.04)),
        refusal=None if refusal is None else share(refusal),
        valid=share(min(1.0, exact + 0.1)),
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


def right(number: int) -> Answer:
    """An utterance that every contender but the base gets right."""
    return answer(number, f"seat heating to {number}", *[temperature("driver", number)] * 3)


def times(p50: float, samples: int) -> Distribution:
    """Runs around a median, skewed as timings are."""
    draws = random.Random(samples)
    return distribution([p50 * draws.lognormvariate(0.0, 0.06) for _ in range(samples)])


def point(tokens: int, bundle_ttft: float, bundle_token: float) -> LatencyPoint:
    ttft = {"unmerged": tokens * 2.1, "merged": tokens * 1.75, "bundle": tokens * 2.1 * bundle_ttft}
    token = {"unmerged": 46.1, "merged": 38.5, "bundle": 46.1 * bundle_token}
    return LatencyPoint(
        prompt_tokens=tokens,
        new_tokens=16,
        ttft={name: times(value, 9) for name, value in ttft.items()},
        token={name: times(value, 135) for name, value in token.items()},
        ttft_ratio=ratios(ttft, 9),
        token_ratio=ratios(token, 9),
    )


def ratios(medians: dict[str, float], units: int) -> dict[str, Estimate]:
    return {
        name: scaled(medians[name] / medians["unmerged"], 0.97, 1.03, units) for name in ("merged", "bundle")
    }


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


UNTRAINED = Training("", {}, {}, "", {})
GATE = Gate(min_exact_call=0.8, max_load_ms=2000.0)


def report(
    parity: ParityReport, task: TaskReport, latency: LatencyReport, baseline: Report | None = None
) -> Report:
    stages = ("base", "data", "adapter", "merged", "onnx", "candidate", "evidence")
    sizes = (542_314_880, 1_204_551, 19_614_832, 538_093_208, 171_400_352, 175_012_004, 512_332)
    return Report(
        schema_version=SCHEMA_VERSION,
        name="smollm2-135m",
        parity=parity,
        task=task,
        latency=latency,
        gate=judge("int8", GATE, parity, task, latency, baseline),
        lineage={stage: f"{index + 1:x}f0e" * 16 for index, stage in enumerate(stages)},
        sizes=dict(zip(stages, sizes, strict=True)),
        training=Training(
            method="lora",
            figures={"steps": 310.0, "tokens": 158_720.0, "supervised_share": 0.435},
            layers_of_rank={},
            merged_onto="",
            kl_merged_onto={},
        ),
        baseline="" if baseline is None else f"{baseline.name} 5c1d{baseline.lineage['candidate'][:12]}",
    )


def released() -> Report:
    """A good int8 bundle, the first of its kind."""
    parity = ParityReport(
        hops=(
            hop("merged", "unmerged", "float32", *[(3.1e-9, 2.4e-6, 1.0)] * 2, sites(1.2e-7)),
            hop("onnx", "merged", "float32", (8.8e-9, 3.9e-6, 1.0), (9.1e-9, 4.4e-6, 1.0), sites(3.1e-7)),
            hop(
                "weights_only",
                "onnx",
                "int8",
                (6.2e-4, 0.021, 0.9948),
                (6.2e-4, 0.021, 0.9948),
                sites(4.1e-3),
            ),
            hop(
                "shipped",
                "weights_only",
                "int8",
                (7.4e-4, 0.026, 0.9943),
                (1.3e-3, 0.034, 0.9921),
                sites(6.3e-3),
            ),
            hop("bundle", "shipped", "int8", (0.0, 0.0, 1.0), (1.3e-3, 0.034, 0.9921)),
        ),
        cache=(
            CacheCheck("weights_only", "decode", 8, 512, 3.2e-6, 0),
            CacheCheck("weights_only", "chunks", 8, 76, 2.9e-6, 0),
            CacheCheck("weights_only", "rewind", 8, 258, 3.3e-6, 0),
            CacheCheck("bundle", "decode", 8, 512, 2.2e-3, 0),
            CacheCheck("bundle", "chunks", 8, 76, 1.9e-3, 0),
            CacheCheck("bundle", "rewind", 8, 258, 2.2e-3, 0),
        ),
        rendering=RenderingCheck(240, 0, ""),
        generations=Generations(80, around(0.8875, 0.07, units=80), 14.0),
    )
    task = TaskReport(
        contenders=(
            contender("base", 0.03, DOMAINS, 0.12),
            contender("unmerged", 0.908, DOMAINS, 0.97),
            contender("bundle", 0.904, DOMAINS, 0.97),
        ),
        exact_call_drop=Estimate(0.0042, -0.0125, 0.0208, 240),
        mcnemar_p=0.625,
        answers=ANSWERS + tuple(map(right, range(100, 120))),
    )
    call = {"unmerged": 1960.0, "merged": 1700.0, "bundle": 342.0}
    latency = LatencyReport(
        machine=MACHINE,
        threads=2,
        points=(point(64, 0.29, 0.14), point(256, 0.27, 0.15)),
        call=CallLatency(24, {name: times(value, 24) for name, value in call.items()}, ratios(call, 24)),
        own_calls={
            "en": OwnCalls(times(48.0, 20), 5.8, 22.4, 10.8, 33.6, 3.4, 0.6),
            "zh": OwnCalls(times(121.0, 15), 17.2, 34.0, 11.9, 104.0, 7.7, 1.3),
        },
        footprints={
            "unmerged": Footprint(1840.0, 1_912_000_000),
            "merged": Footprint(1210.0, 1_655_000_000),
            "bundle": Footprint(231.0, 402_000_000),
        },
    )
    return report(parity, task, latency)


def admitted() -> Report:
    """The same again, judged against the release too."""
    last = released()
    return report(last.parity, last.task, last.latency, last)


def refused() -> Report:
    """An operator drawn wrongly, a chat template that differs, and a slow first token."""
    good = released()
    merged, _, *quantized = good.parity.hops
    lost = (0.43, 0.66, 0.80)
    broken = hop("onnx", "merged", "float32", (0.41, 0.63, 0.81), lost, sites(3.1e-7, (3, "attention.qkv")))
    hops = (
        merged,
        broken,
        *(replace(later, origin=comparison(later.step.name, "unmerged", *lost)) for later in quantized),
    )
    cache = (*good.parity.cache[:3], CacheCheck("bundle", "decode", 8, 512, 0.31, 17), *good.parity.cache[4:])
    parity = ParityReport(
        hops,
        cache,
        RenderingCheck(240, 3, f"turn {SCRIPT} on"),
        Generations(80, around(0.2125, 0.09, units=80), 5.0),
    )
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
    task = TaskReport(scores, Estimate(0.298, 0.241, 0.357, 240), 3.1e-16, ANSWERS + changed)
    latency = replace(good.latency, points=(point(64, 1.31, 0.14), point(256, 0.99, 0.15)))
    return report(parity, task, latency)


def undecided() -> Report:
    """Too few conversations, utterances and runs to tell; no prompt compared; one length not measured."""
    good = released()
    task = replace(good.task, exact_call_drop=Estimate(0.0417, 0.0, 0.0833, 24))
    unmeasured = replace(good.latency.points[1], ttft_ratio={}, token_ratio={})
    latency = replace(good.latency, points=(good.latency.points[0], unmeasured))
    *exact, shipped, bundle = good.parity.hops
    few = replace(shipped.step, kl_mean=replace(shipped.step.kl_mean, units=6))
    hops = (*exact, replace(shipped, step=few), bundle)
    return report(replace(good.parity, hops=hops, rendering=RenderingCheck(0, 0, "")), task, latency)


def bare() -> Report:
    """An adapter and a graph from elsewhere, no domains or refusals; nothing timed, no answer changed."""
    good = released()
    names = (("base", 0.0), ("unmerged", 1.0), ("bundle", 1.0))
    contenders = tuple(
        ContenderScore(name, score(40, exact, None), {"en": score(40, exact, None)}, {})
        for name, exact in names
    )
    parity = ParityReport(
        good.parity.hops[-1:], (), good.parity.rendering, Generations(40, Estimate(1.0, 1.0, 1.0, 40), None)
    )
    made = report(
        parity,
        TaskReport(contenders, Estimate(0.0, 0.0, 0.0, 40), 1.0, ANSWERS[:1]),
        LatencyReport(MACHINE, 2, (), CallLatency(0, {}, {}), {}, {}),
    )
    return replace(made, training=UNTRAINED, sizes={"bundle": 175_012_004}, lineage={"bundle": "ab" * 32})
