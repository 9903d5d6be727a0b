"""Every gate passes on good evidence and is seen to fail on bad evidence; so is the verdict."""

import dataclasses
from collections.abc import Callable

import pytest

from pipeline.config import Gate
from pipeline.evidence.gate import DEFAULTS, judge
from runtime.errors import ConfigError
from runtime.report import (
    CacheCheck,
    Comparison,
    ContenderScore,
    Distribution,
    Estimate,
    GateReport,
    Histogram,
    LatencyPoint,
    LatencyReport,
    Machine,
    ParityReport,
    RenderingCheck,
    Score,
    TaskReport,
)

ZERO, ONE = Estimate(0.0, 0.0, 0.0), Estimate(1.0, 1.0, 1.0)
SCORE = Score(100, Estimate(0.9, 0.85, 0.95), 0.95, 0.95, 1.0, 1.0)
TIME = Distribution(5, 10.0, 11.0, 12.0)
RENDERED = RenderingCheck(100, 0, "")
FASTER = Estimate(0.3, 0.25, 0.35)
GATE = Gate(min_exact_call=0.8)


def comparison() -> Comparison:
    return Comparison(
        name="bundle",
        against="unmerged",
        conversations=10,
        positions=500,
        max_absolute_error=0.0,
        rms_absolute_error=0.0,
        relative_error=0.0,
        rms_relative_error=0.0,
        kl_mean=ZERO,
        kl_p99=0.0,
        kl_max=0.0,
        kl_histogram=Histogram((0.0, 1.0), (500,)),
        top1=ONE,
        top5=1.0,
        flips=0,
        near_tie_flips=0,
        near_tie=1e-3,
        reference_perplexity=3.0,
        perplexity=3.0,
    )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Good until one field is broken."""

    comparison: Comparison = dataclasses.field(default_factory=comparison)
    cache: tuple[CacheCheck, ...] = tuple(
        CacheCheck(way, 5, 100, 0.0, 0) for way in ("decode", "chunks", "rewind")
    )
    rendering: RenderingCheck = RENDERED
    drop: Estimate = ZERO
    score: Score = SCORE
    ttft_ratio: Estimate = FASTER
    token_ratio: Estimate = FASTER
    contender: str = "bundle"

    def judged(self, gate: Gate = GATE) -> GateReport:
        scored = ContenderScore(self.contender, self.score, {}, {})
        machine = Machine("processor", 2, (), "system", 0, {})
        times = {"unmerged": TIME, "bundle": TIME}
        point = LatencyPoint(64, 8, times, times, {"bundle": self.ttft_ratio}, {"bundle": self.token_ratio})
        return judge(
            "int8",
            gate,
            ParityReport((self.comparison,), self.cache, self.rendering),
            TaskReport((scored,), self.drop, 1.0, ()),
            LatencyReport(machine, 2, (point,), {}),
        )

    def but(self, **changes: object) -> "Evidence":
        return dataclasses.replace(self, **changes)

    def compared(self, **changes: object) -> "Evidence":
        return self.but(comparison=dataclasses.replace(self.comparison, **changes))


GOOD = Evidence()
NAN = float("nan")

BROKEN: dict[str, tuple[str, Evidence]] = {
    "a prompt is rendered differently": ("rendering", GOOD.but(rendering=RenderingCheck(100, 1, "open it"))),
    "logits are off": ("max_relative_error", GOOD.compared(relative_error=0.5)),
    "logits are not numbers": ("max_relative_error", GOOD.compared(relative_error=NAN)),
    "distributions are off on average": ("max_mean_kl", GOOD.compared(kl_mean=Estimate(0.3, 0.2, 0.4))),
    "distributions are off in the tail": ("max_p99_kl", GOOD.compared(kl_p99=1.0)),
    "another token is most probable": ("min_top1", GOOD.compared(top1=Estimate(0.8, 0.75, 0.85))),
    "decoding differs from prefill": (
        "max_cache_error",
        GOOD.but(cache=(CacheCheck("decode", 5, 100, 0.4, 9),)),
    ),
    "chunks differ from prefill": (
        "max_cache_error",
        GOOD.but(cache=(CacheCheck("chunks", 5, 100, 0.4, 9),)),
    ),
    "a rewound cache is stale": ("max_cache_error", GOOD.but(cache=(CacheCheck("rewind", 5, 100, 0.4, 9),))),
    "calls were lost": ("max_exact_call_drop", GOOD.but(drop=Estimate(0.2, 0.15, 0.25))),
    "calls are too few": (
        "min_exact_call",
        GOOD.but(score=dataclasses.replace(SCORE, exact_call=Estimate(0.5, 0.4, 0.6))),
    ),
    "the first token is late": ("max_ttft_ratio", GOOD.but(ttft_ratio=Estimate(1.5, 1.4, 1.6))),
    "tokens are slow": ("max_token_ratio", GOOD.but(token_ratio=Estimate(2.0, 1.9, 2.1))),
}


def test_good_evidence_passes() -> None:
    report = GOOD.judged()
    assert report.verdict == "pass"
    assert all(check.verdict == "pass" for check in report.checks)
    assert len(report.checks) == 12


def test_every_threshold_has_a_way_to_break_it() -> None:
    assert {name for name, _ in BROKEN.values()} == {"rendering", *Gate.model_fields}


@pytest.mark.parametrize("name", BROKEN)
def test_each_gate_fails_on_what_it_is_for(name: str) -> None:
    gate, evidence = BROKEN[name]
    report = evidence.judged()
    assert report.verdict == "fail"
    assert {check.name for check in report.checks if check.verdict == "fail"} == {gate}


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
    report = STRADDLING[name](Estimate(threshold * 0.999, threshold * 0.9, threshold * 1.1)).judged()
    assert report.verdict == "inconclusive"
    missed = [check for check in report.checks if check.verdict != "pass"]
    assert [check.name for check in missed] == [name]
    assert "times the sample" in missed[0].reason


def test_what_was_not_measured_is_inconclusive() -> None:
    assert GOOD.but(rendering=RenderingCheck(0, 0, "")).judged().verdict == "inconclusive"


def test_a_failure_outweighs_what_is_inconclusive() -> None:
    evidence = GOOD.compared(kl_p99=1.0).but(rendering=RenderingCheck(0, 0, ""))
    assert evidence.judged().verdict == "fail"


def test_thresholds_of_the_config_replace_defaults() -> None:
    strict = Gate(max_token_ratio=0.1)
    assert GOOD.judged(strict).verdict == "fail"


def test_reports_without_the_bundle_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not measure the bundle"):
        GOOD.but(contender="other").judged()


@pytest.mark.parametrize("precision", DEFAULTS)
def test_every_precision_has_a_default_for_every_gate_but_the_absolute_accuracy(precision: str) -> None:
    assert set(DEFAULTS[precision]) == set(Gate.model_fields) - {"min_exact_call"}


def test_more_bits_are_held_to_no_looser_thresholds() -> None:
    for looser, stricter in (("int4", "int8"), ("int8", "fp16"), ("fp16", "fp32")):
        for name in DEFAULTS[stricter]:
            if name.startswith("max"):
                assert DEFAULTS[stricter][name] <= DEFAULTS[looser][name]
            else:
                assert DEFAULTS[stricter][name] >= DEFAULTS[looser][name]
