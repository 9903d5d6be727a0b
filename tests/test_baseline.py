"""Growth since the last release is seen where it is, and a baseline from elsewhere is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.evidence.baseline import against_baseline, refuse_incomparable
from pipeline.evidence.thresholds import DEFAULTS, Limits
from runtime.errors import UsageError
from runtime.report import (
    SCHEMA_VERSION,
    Answer,
    CallLatency,
    Check,
    Comparison,
    Estimate,
    Footprint,
    GateReport,
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
    TaskReport,
    Training,
    distribution,
    to_json,
)

LIMITS = Limits(DEFAULTS["int8"])
GROWTHS = {name for name in LIMITS.thresholds if name.endswith("_growth")}
ONE = Estimate(1.0, 1.0, 1.0, 60)
TIMES = {"unmerged": distribution((9.0, 11.0)), "bundle": distribution((2.0, 3.0))}
MACHINE = Machine(
    processor="One",
    cores=4,
    features=("avx2", "avx512_vnni"),
    system="Linux 6.1.0 x86_64",
    memory_bytes=2**34,
    versions={"onnxruntime": "1.32.0", "python": "3.11.7", "torch": "2.13.0"},
)


def around(value: float, units: int = 5) -> Estimate:
    """Within 5 %, as a quiet machine measures."""
    return Estimate(value, value * 0.95, value * 1.05, units)


def hop(kl: Estimate) -> Hop:
    compared = Comparison(
        name="bundle",
        against="unmerged",
        conversations=60,
        positions=4000,
        max_absolute_error=ONE,
        rms_absolute_error=ONE,
        relative_error=ONE,
        rms_relative_error=ONE,
        kl_mean=kl,
        kl_p99=ONE,
        kl_max=ONE,
        kl_histogram=Histogram((0.0, 1.0), (4000,)),
        top1=ONE,
        top5=ONE,
        flips=0,
        near_tie_flips=0,
        near_tie=1e-3,
        reference_perplexity=1.2,
        perplexity_difference=ONE,
    )
    return Hop(compared, compared, "int8", ())


def answer(number: int, exact: bool) -> Answer:
    return Answer(f"test-{number}", f"{number} degrees", f"[{number}]", {}, {"bundle": exact})


def point(length: int, ttft: float, token: float, rounds: int = 5) -> LatencyPoint:
    ratios = {"bundle": around(ttft, rounds)}, {"bundle": around(token, rounds)}
    return LatencyPoint(length, 16, TIMES, TIMES, *ratios)


SHORT, LONG = point(64, 0.28, 0.11), point(256, 0.4, 0.12)
RELEASE = Report(
    schema_version=SCHEMA_VERSION,
    name="release-7",
    parity=ParityReport(
        (hop(around(0.002, 60)),), (), RenderingCheck(60, 0, ""), Generations(60, around(0.9, 60), 4.0)
    ),
    task=TaskReport((), ONE, 1.0, tuple(answer(number, number != 3) for number in range(60))),
    latency=LatencyReport(
        machine=MACHINE,
        threads=2,
        points=(SHORT, LONG),
        call=CallLatency(10, TIMES, {"bundle": around(0.15, 10)}),
        own_calls={"en": OwnCalls(TIMES["bundle"], 6.0, 22.0, 0.6, 1.8, 0.1, 0.02)},
        footprints={"unmerged": Footprint(3000.0, 10**9), "bundle": Footprint(600.0, 4 * 10**8)},
    ),
    gate=GateReport("int8", (), "pass", None),
    lineage={},
    sizes={},
    training=Training("", {}, {}, "", {}),
    baseline="",
)


def judged(now: Report, then: Report = RELEASE) -> list[Check]:
    return against_baseline(then, now.parity, now.task, now.latency, LIMITS)


def with_kl(kl: Estimate) -> Report:
    return replace(RELEASE, parity=replace(RELEASE.parity, hops=(hop(kl),)))


def with_answers(*answers: Answer) -> Report:
    return replace(RELEASE, task=replace(RELEASE.task, answers=answers))


def with_points(*points: LatencyPoint) -> Report:
    return replace(RELEASE, latency=replace(RELEASE.latency, points=points))


def with_call(ratio: Estimate) -> Report:
    return replace(RELEASE, latency=replace(RELEASE.latency, call=CallLatency(10, TIMES, {"bundle": ratio})))


def with_peak(peak: int) -> Report:
    footprints = {**RELEASE.latency.footprints, "bundle": Footprint(600.0, peak)}
    return replace(RELEASE, latency=replace(RELEASE.latency, footprints=footprints))


def missed(checks: list[Check]) -> dict[tuple[str, str], str]:
    """What did not pass, and how."""
    return {(check.name, check.at): check.verdict for check in checks if check.verdict != "pass"}


def test_the_same_release_has_not_grown() -> None:
    checks = judged(RELEASE)
    assert missed(checks) == {}
    assert [(check.name, check.at) for check in checks] == [
        ("max_kl_growth", ""),
        ("max_exact_call_loss", ""),
        ("max_ttft_growth", "64"),
        ("max_token_growth", "64"),
        ("max_ttft_growth", "256"),
        ("max_token_growth", "256"),
        ("max_call_growth", ""),
        ("max_peak_growth", ""),
    ]
    for check in checks:
        assert check.value == (0.0 if check.name == "max_exact_call_loss" else 1.0)
    assert {check.name for check in checks} > GROWTHS


GROWN: dict[str, tuple[str, str, Report]] = {
    "logits drifted": ("max_kl_growth", "", with_kl(around(0.006, 60))),
    "calls were lost": (
        "max_exact_call_loss",
        "",
        with_answers(*(answer(number, number % 3 != 0) for number in range(60))),
    ),
    "a long prompt takes longer": (
        "max_ttft_growth",
        "256",
        with_points(SHORT, point(256, 0.8, 0.12)),
    ),
    "a sleep before every token": (
        "max_token_growth",
        "64",
        with_points(point(64, 0.28, 0.22), LONG),
    ),
    "whole answers take twice as long": ("max_call_growth", "", with_call(around(0.3, 10))),
    "memory doubled": ("max_peak_growth", "", with_peak(8 * 10**8)),
}


@pytest.mark.parametrize("name", GROWN)
def test_growth_is_caught_by_the_check_that_is_meant_for_it(name: str) -> None:
    check, at, now = GROWN[name]
    assert missed(judged(now)) == {(check, at): "fail"}


@pytest.mark.parametrize("name", GROWN)
def test_becoming_better_by_as_much_passes(name: str) -> None:
    assert missed(judged(RELEASE, then=GROWN[name][2])) == {}


def test_an_interval_is_the_widest_that_both_allow() -> None:
    then, now = with_call(Estimate(0.2, 0.1, 0.4, 10)), with_call(Estimate(0.3, 0.2, 0.4, 7))
    check = next(check for check in judged(now, then) if check.name == "max_call_growth")
    assert check.value == pytest.approx(1.5)
    assert (check.low, check.high) == pytest.approx((0.5, 4.0))
    assert check.verdict == "inconclusive"
    assert "instead of 7" in check.reason


def test_too_few_rounds_on_either_side_do_not_pass() -> None:
    few = with_points(point(64, 0.28, 0.11, rounds=2), LONG)
    expected = {("max_ttft_growth", "64"): "inconclusive", ("max_token_growth", "64"): "inconclusive"}
    assert missed(judged(few)) == missed(judged(RELEASE, then=few)) == expected


def test_a_prompt_length_that_only_one_report_has_is_inconclusive() -> None:
    short = with_points(SHORT)
    expected = {("max_ttft_growth", "256"): "inconclusive", ("max_token_growth", "256"): "inconclusive"}
    for checks in (judged(RELEASE, then=short), judged(short)):
        assert missed(checks) == expected
        assert all(check.value is None for check in checks if check.at == "256")


def test_what_the_baseline_did_not_measure_is_inconclusive() -> None:
    nothing = replace(
        RELEASE,
        parity=replace(RELEASE.parity, hops=()),
        task=replace(RELEASE.task, answers=()),
        latency=replace(RELEASE.latency, points=(), call=CallLatency(0, {}, {}), own_calls={}, footprints={}),
    )
    checks = judged(RELEASE, then=nothing)
    assert {check.name for check in checks} == {*GROWTHS, "max_exact_call_loss"}
    assert all((check.verdict, check.reason) == ("inconclusive", "not measured") for check in checks)


def test_lost_calls_are_counted_over_the_utterances_that_both_answered() -> None:
    def loss(now: Report) -> Check:
        return next(check for check in judged(now) if check.name == "max_exact_call_loss")

    # Sixty that the baseline never saw, and all of them wrong.
    new = [answer(number, False) for number in range(100, 160)]
    check = loss(with_answers(*RELEASE.task.answers, *new))
    assert (check.value, check.verdict) == (0.0, "pass")
    # The same id in another test set is another utterance.
    other = [replace(each, utterance=f"please, {each.utterance}") for each in RELEASE.task.answers]
    assert loss(with_answers(*other)).reason == "not measured"
    expected_otherwise = [replace(each, expected="[]") for each in RELEASE.task.answers]
    assert loss(with_answers(*expected_otherwise)).reason == "not measured"
    few = loss(with_answers(*RELEASE.task.answers[:9], *new))
    assert few.verdict == "inconclusive"
    assert few.reason == "measured on 9, and 10 are the fewest to pass on"
    # One right answer more and one less are no loss, but not a certain one either.
    swapped = [answer(number, number != 4) for number in range(60)]
    check = loss(with_answers(*swapped))
    assert check.value == 0.0
    assert check.low is not None
    assert check.high is not None
    assert check.low < 0 < check.high


def test_divergence_that_rounding_makes_does_not_grow() -> None:
    nothing, noise = with_kl(around(0.0, 60)), with_kl(around(3e-9, 60))
    assert missed(judged(noise, then=nothing)) == missed(judged(noise, then=with_kl(around(1e-10, 60)))) == {}
    grown = judged(with_kl(around(0.002, 60)), then=nothing)
    assert missed(grown) == {("max_kl_growth", ""): "fail"}
    assert "Infinity" not in "".join(map(to_json, grown))


def test_a_baseline_of_this_machine_is_let_pass() -> None:
    refuse_incomparable(RELEASE, MACHINE, threads=2)
    patched = replace(MACHINE, system="Linux 6.1.99-2 x86_64", memory_bytes=2**33)
    refuse_incomparable(RELEASE, patched, threads=2)


DIFFERENT: dict[str, tuple[Callable[[Machine], Machine], str]] = {
    "processor": (
        lambda m: replace(m, processor="Two"),
        "processor One then, Two now",
    ),
    "cores": (lambda m: replace(m, cores=8), "cores 4 then, 8 now"),
    "features": (
        lambda m: replace(m, features=("avx2",)),
        "processor features avx2+avx512_vnni then, avx2 now",
    ),
    "no features": (lambda m: replace(m, features=()), "processor features avx2+avx512_vnni then, none now"),
    "system": (
        lambda m: replace(m, system="Darwin 24.1 arm64"),
        "system Linux x86_64 then, Darwin arm64 now",
    ),
    "version": (
        lambda m: replace(m, versions={**m.versions, "onnxruntime": "1.33.0"}),
        "onnxruntime 1.32.0 then, 1.33.0 now",
    ),
    "library that was not there": (
        lambda m: replace(m, versions={**m.versions, "peft": "0.21.2"}),
        "peft absent then, 0.21.2 now",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_baseline_from_elsewhere_is_refused_with_the_difference(name: str) -> None:
    change, difference = DIFFERENT[name]
    with pytest.raises(UsageError) as refused:
        refuse_incomparable(RELEASE, change(MACHINE), threads=2)
    assert str(refused.value) == (
        f'the baseline "release-7" is not comparable: {difference}; '
        "validate that release again here and as today, or leave the baseline out"
    )
    assert refused.value.exit_code == 2


def test_every_difference_is_listed_at_once() -> None:
    other = MACHINE
    for name in ("processor", "cores", "features", "system", "version", "library that was not there"):
        other = DIFFERENT[name][0](other)
    with pytest.raises(UsageError) as refused:
        refuse_incomparable(RELEASE, other, threads=4)
    told = str(refused.value)
    assert all(difference in told for name, (_, difference) in DIFFERENT.items() if name != "no features")
    assert "threads 2 then, 4 now" in told
    assert "\n" not in told


def test_features_in_another_order_are_the_same() -> None:
    refuse_incomparable(RELEASE, replace(MACHINE, features=MACHINE.features[::-1]), threads=2)
