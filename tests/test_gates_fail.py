"""Every gate passes on good evidence and is seen to fail on bad evidence; so is the verdict."""

import dataclasses
from collections.abc import Callable

import pytest

from pipeline.config import Gate
from pipeline.evidence.gate import judge
from pipeline.evidence.switching import Switching
from pipeline.evidence.thresholds import DEFAULTS
from runtime.errors import ConfigError
from runtime.report import (
    SCHEMA_VERSION,
    Answer,
    CacheCheck,
    CallLatency,
    Comparison,
    ContenderScore,
    Estimate,
    Footprint,
    GateReport,
    Generations,
    Histogram,
    Hop,
    LatencyPoint,
    LatencyReport,
    Machine,
    ParityReport,
    RenderingCheck,
    Report,
    Score,
    TaskReport,
    Training,
    distribution,
)

ZERO, ONE = Estimate(0.0, 0.0, 0.0, 100), Estimate(1.0, 1.0, 1.0, 100)
SCORE = Score(100, Estimate(0.9, 0.85, 0.95, 100), ONE, ONE, ONE, ONE)
TIME = distribution([10.0, 11.0, 12.0])
RENDERED = RenderingCheck(100, 0, "")
FASTER = Estimate(0.3, 0.28, 0.32, 10)
SMALL = Footprint(800.0, 300)
GATE = Gate(min_exact_call=0.7, max_load_ms=5000)


def comparison() -> Comparison:
    return Comparison(
        name="bundle",
        against="unmerged",
        conversations=10,
        positions=500,
        max_absolute_error=ZERO,
        rms_absolute_error=ZERO,
        relative_error=ZERO,
        rms_relative_error=ZERO,
        kl_mean=ZERO,
        kl_p99=ZERO,
        kl_max=ZERO,
        kl_histogram=Histogram((0.0, 1.0), (500,)),
        top1=ONE,
        top5=ONE,
        flips=0,
        near_tie_flips=0,
        near_tie=1e-3,
        reference_perplexity=3.0,
        perplexity_difference=ZERO,
    )


def around(value: float) -> Estimate:
    return Estimate(value, value * 0.95, value * 1.05, 100)


def hop(name: str, against: str, weights: str) -> Hop:
    whole = dataclasses.replace(comparison(), name=name)
    return Hop(dataclasses.replace(whole, against=against), whole, weights, ())


CHAIN = (
    hop("merged", "unmerged", "float32"),
    hop("onnx", "merged", "float32"),
    hop("weights_only", "onnx", "int8"),
    hop("shipped", "weights_only", "int8"),
    hop("bundle", "shipped", "int8"),
)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Good until one field is broken."""

    hops: tuple[Hop, ...] = CHAIN
    cache: tuple[CacheCheck, ...] = tuple(
        CacheCheck(form, way, 5, 100, 0.0, 0)
        for form in ("weights_only", "bundle")
        for way in ("decode", "chunks", "rewind")
    )
    rendering: RenderingCheck = RENDERED
    identical: Estimate = ONE
    drop: Estimate = ZERO
    score: Score = SCORE
    ttft_ratio: Estimate = FASTER
    token_ratio: Estimate = FASTER
    call_ratio: Estimate = FASTER
    footprint: Footprint = SMALL
    contender: str = "bundle"

    @property
    def parity(self) -> ParityReport:
        return ParityReport(self.hops, self.cache, self.rendering, Generations(40, self.identical, None))

    @property
    def task(self) -> TaskReport:
        answers = tuple(
            Answer(str(n), f"say {n}", "[]", {}, {"bundle": n < 100 * self.score.exact_call.value})
            for n in range(100)
        )
        return TaskReport((ContenderScore(self.contender, self.score, {}, {}),), self.drop, 1.0, answers)

    @property
    def latency(self) -> LatencyReport:
        times = {"unmerged": TIME, "bundle": TIME}
        point = LatencyPoint(64, 8, times, times, {"bundle": self.ttft_ratio}, {"bundle": self.token_ratio})
        call = CallLatency(10, times, {"bundle": self.call_ratio})
        return LatencyReport(
            Machine("processor", 2, (), "system", 0, {}),
            2,
            (point,),
            call,
            {},
            {"unmerged": Footprint(3000.0, 1000), "bundle": self.footprint},
        )

    def judged(self, gate: Gate = GATE, baseline: Report | None = None) -> GateReport:
        return judge("int8", gate, self.parity, self.task, self.latency, baseline)

    def but(self, **changes: object) -> "Evidence":
        return dataclasses.replace(self, **changes)

    def compared(self, **changes: object) -> "Evidence":
        """The bundle against the unmerged model."""
        last = dataclasses.replace(self.hops[-1], origin=dataclasses.replace(self.hops[-1].origin, **changes))
        return self.but(hops=(*self.hops[:-1], last))

    def stepped(self, place: int, **changes: object) -> "Evidence":
        """One hop against the hop before."""
        hops = list(self.hops)
        hops[place] = dataclasses.replace(hops[place], step=dataclasses.replace(hops[place].step, **changes))
        return self.but(hops=tuple(hops))


GOOD = Evidence()
NAN = float("nan")

RELEASED = Report(
    SCHEMA_VERSION, "v1", GOOD.compared(kl_mean=around(0.001)).parity, GOOD.task, GOOD.latency,
    GOOD.judged(), {}, {}, Training("", {}, {}, "", {}), "",
)  # fmt: skip
"""The last release, for what is judged by growth."""
NOW = GOOD.compared(kl_mean=around(0.001))

BROKEN: dict[str, tuple[str, Evidence]] = {
    "a prompt is rendered differently": ("rendering", NOW.but(rendering=RenderingCheck(100, 1, "open it"))),
    "merging changed the function": ("max_hop_error", NOW.stepped(0, relative_error=around(0.01))),
    "the graph is another function": ("max_hop_error", NOW.stepped(1, relative_error=around(0.01))),
    "rounded weights are off": ("max_weights_kl", NOW.stepped(2, kl_mean=around(0.1))),
    "rounded activations are off": ("max_activations_kl", NOW.stepped(3, kl_mean=around(0.1))),
    "the runtime is another function": ("max_hop_error", NOW.stepped(4, relative_error=around(0.01))),
    "logits are off": ("max_relative_error", NOW.compared(relative_error=around(0.5))),
    "logits are not numbers": ("max_relative_error", NOW.compared(relative_error=around(NAN))),
    "distributions are off in the tail": ("max_p99_kl", NOW.compared(kl_p99=around(1.0))),
    "another token is most probable": ("min_top1", NOW.compared(top1=around(0.8))),
    "answers differ": ("min_identical_answers", NOW.but(identical=around(0.4))),
    "decoding differs from prefill": (
        "max_cache_error",
        NOW.but(cache=(CacheCheck("bundle", "decode", 5, 100, 0.4, 9),)),
    ),
    "decoding differs from prefill in floats": (
        "max_float_cache_error",
        NOW.but(cache=(CacheCheck("weights_only", "decode", 5, 100, 0.004, 9),)),
    ),
    "calls were lost": ("max_exact_call_drop", NOW.but(drop=around(0.2))),
    "answers are no calls": ("min_valid", NOW.but(score=dataclasses.replace(SCORE, valid=around(0.5)))),
    "the first token is late": ("max_ttft_ratio", NOW.but(ttft_ratio=around(1.5))),
    "tokens are slow": ("max_token_ratio", NOW.but(token_ratio=around(2.0))),
    "whole answers are slow": ("max_call_ratio", NOW.but(call_ratio=around(2.0))),
    "memory is spent": ("max_peak_ratio", NOW.but(footprint=Footprint(800.0, 1200))),
    "loading takes long": ("max_load_ms", NOW.but(footprint=Footprint(9000.0, 300))),
    "calls are too few": (
        "min_exact_call",
        NOW.but(score=dataclasses.replace(SCORE, exact_call=around(0.5))),
    ),
}
GROWN: dict[str, tuple[str, Evidence]] = {
    "fidelity fell since the release": ("max_kl_growth", GOOD.compared(kl_mean=around(0.003))),
    "calls were lost since the release": (
        "max_exact_call_loss",
        NOW.but(score=dataclasses.replace(SCORE, exact_call=around(0.75))),
    ),
    "the first token is later": ("max_ttft_growth", NOW.but(ttft_ratio=around(0.6))),
    "tokens are slower": ("max_token_growth", NOW.but(token_ratio=around(0.6))),
    "whole answers are slower": ("max_call_growth", NOW.but(call_ratio=around(0.6))),
    "memory grew": ("max_peak_growth", NOW.but(footprint=Footprint(800.0, 600))),
}


def test_good_evidence_passes() -> None:
    report = NOW.judged(baseline=RELEASED)
    assert report.verdict == "pass"
    assert all(check.verdict == "pass" for check in report.checks)
    assert len(report.checks) == 31


def test_every_threshold_has_a_way_to_break_it() -> None:
    broken = {name for name, _ in (*BROKEN.values(), *GROWN.values())}
    assert broken | {"max_mean_kl"} == {"rendering", *Gate.model_fields}


@pytest.mark.parametrize("name", BROKEN)
def test_each_gate_fails_on_what_it_is_for(name: str) -> None:
    gate, evidence = BROKEN[name]
    report = evidence.judged()
    assert report.verdict == "fail"
    assert {check.name for check in report.checks if check.verdict == "fail"} == {gate}


@pytest.mark.parametrize("name", GROWN)
def test_each_growth_is_judged_beside_a_release_and_only_there(name: str) -> None:
    gate, evidence = GROWN[name]
    report = evidence.judged(baseline=RELEASED)
    assert {check.name for check in report.checks if check.verdict == "fail"} == {gate}
    assert evidence.judged().verdict == "pass"


def test_distributions_off_on_average_are_refused() -> None:
    report = GOOD.compared(kl_mean=around(0.3)).judged()
    assert [check.name for check in report.checks if check.verdict == "fail"] == ["max_mean_kl"]


@pytest.mark.parametrize("units", [1, 9])
def test_too_little_evidence_is_inconclusive(units: int) -> None:
    few = dataclasses.replace(ZERO, units=units)
    report = GOOD.compared(kl_mean=few).judged()
    assert report.verdict == "inconclusive"
    (missed,) = [check for check in report.checks if check.verdict != "pass"]
    assert missed.name == "max_mean_kl"
    assert f"measured on {units}" in missed.reason


def test_a_merge_in_half_precision_is_held_to_its_rounding() -> None:
    error = {"relative_error": around(0.03)}
    (failed,) = [c for c in GOOD.stepped(0, **error).judged().checks if c.verdict != "pass"]
    assert (failed.name, failed.at) == ("max_hop_error", "merged")
    rounded = dataclasses.replace(GOOD.hops[0], weights="bfloat16")
    assert GOOD.but(hops=(rounded, *GOOD.hops[1:])).stepped(0, **error).judged().verdict == "pass"
    strict = Gate(max_hop_error=1e-3)
    assert GOOD.but(hops=(rounded, *GOOD.hops[1:])).stepped(0, **error).judged(strict).verdict == "fail"


STRADDLING: dict[str, Callable[[Estimate], Evidence]] = {
    "max_mean_kl": lambda estimate: GOOD.compared(kl_mean=estimate),
    "min_top1": lambda estimate: GOOD.compared(top1=estimate),
    "max_exact_call_drop": lambda estimate: GOOD.but(drop=estimate),
    "max_ttft_ratio": lambda estimate: GOOD.but(ttft_ratio=estimate),
    "max_token_ratio": lambda estimate: GOOD.but(token_ratio=estimate),
}


@pytest.mark.parametrize("name", STRADDLING)
def test_an_interval_across_the_threshold_is_inconclusive_and_does_not_pass(name: str) -> None:
    threshold = DEFAULTS["int8"][name]
    report = STRADDLING[name](Estimate(threshold * 0.999, threshold * 0.9, threshold * 1.1, 100)).judged()
    assert report.verdict == "inconclusive"
    missed = [check for check in report.checks if check.verdict != "pass"]
    assert [check.name for check in missed] == [name]
    assert "instead of 100 would settle it" in missed[0].reason


def test_what_was_not_measured_is_inconclusive() -> None:
    assert GOOD.but(rendering=RenderingCheck(0, 0, "")).judged().verdict == "inconclusive"


def test_a_failure_outweighs_what_is_inconclusive() -> None:
    evidence = GOOD.compared(kl_p99=around(1.0)).but(rendering=RenderingCheck(0, 0, ""))
    assert evidence.judged().verdict == "fail"


def test_thresholds_of_the_config_replace_defaults() -> None:
    strict = Gate(max_token_ratio=0.1)
    assert GOOD.judged(strict).verdict == "fail"


def test_reports_without_the_bundle_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not measure the bundle"):
        GOOD.but(contender="other").judged()
    with pytest.raises(ConfigError, match="do not measure the bundle against"):
        GOOD.but(hops=CHAIN[:-1]).judged()


@pytest.mark.parametrize("precision", DEFAULTS)
def test_every_precision_has_a_default_for_every_gate_but_the_absolute_accuracy(precision: str) -> None:
    rounding = set() if precision in ("int8", "int4") else {"max_weights_kl", "max_activations_kl"}
    absolute = {"min_exact_call", "max_load_ms"}
    assert set(DEFAULTS[precision]) == set(Gate.model_fields) - absolute - rounding


def test_more_bits_are_held_to_no_looser_thresholds() -> None:
    for looser, stricter in (("int4", "int8"), ("int8", "fp16"), ("fp16", "fp32")):
        for name in DEFAULTS[stricter].keys() & DEFAULTS[looser].keys() - {"max_hop_error"}:
            if name.startswith("max"):
                assert DEFAULTS[stricter][name] <= DEFAULTS[looser][name]
            else:
                assert DEFAULTS[stricter][name] >= DEFAULTS[looser][name]


@pytest.mark.parametrize(
    ("found", "verdict", "reason"),
    [
        (Switching(3, 24, 0, ""), "pass", "all 24 answers of 3 tasks and the base are as before, to the bit"),
        (Switching(3, 24, 1, '"a" after "b"'), "fail", '1 of 24 answers differ, first: "a" after "b"'),
        (Switching(0, 0, 0, ""), "inconclusive", "no answer was compared"),
    ],
)
def test_one_answer_that_depends_on_another_task_fails(found: Switching, verdict: str, reason: str) -> None:
    good = Evidence()
    report = judge("int8", Gate(), good.parity, good.task, good.latency, switching=found)
    (check,) = [check for check in report.checks if check.name == "switching"]
    assert (check.verdict, check.reason) == (verdict, reason)
    assert report.verdict == verdict
