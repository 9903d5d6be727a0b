"""Figures as text: right units, and no rounding that flatters."""

from dataclasses import replace

import pytest

from pipeline.evidence.report import figures
from runtime.report import Check


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (figures.number(0.0), "0"),
        (figures.number(0.03125), "0.0312"),
        (figures.number(-3.14e-5), "−3.1×10⁻⁵"),
        (figures.number(158_720.0), "158,720"),
        (figures.share(1.0), "100 %"),
        (figures.share(0.99999), "99.99 %"),
        (figures.share(0.00001), "0.01 %"),
        (figures.share(0.9036), "90.4 %"),
        (figures.points(-0.0125), "−1.2 pp"),
        (figures.milliseconds(1840.0), "1.84 s"),
        (figures.milliseconds(6.915), "6.92 ms"),
        (figures.size(999), "999 B"),
        (figures.size(175_012_004), "175 MB"),
        (figures.times(0.0012), "0.00120×"),
        (figures.plain("0.0500"), "0.05"),
        (figures.plain("100 %"), "100 %"),
        (figures.plain("1.00×"), "1×"),
        (figures.power(1e-9), "10⁻⁹"),
        (figures.power(0.01), "0.01"),
    ],
)
def test_figures_read_as_people_write_them(text: str, wanted: str) -> None:
    assert text.replace("\u00a0", " ") == wanted


def test_a_threshold_barely_missed_does_not_read_as_met() -> None:
    check = Check(
        "max_ttft_ratio", "64", "time", 1.004, None, None, 1.0, "at most", "fail", "beyond the threshold"
    )
    assert figures.check_figure(check) == "> 1.00×"


def test_the_budget_is_measured_from_the_side_that_is_allowed() -> None:
    at_least = Check("min_top1", "", "same", 0.985, 0.98, 0.99, 0.97, "at least", "pass", "")
    used = figures.budget_used(at_least)
    assert used is not None
    assert (used.value, used.low, used.high) == pytest.approx((0.5, 1 / 3, 2 / 3))
    assert figures.budget_used(replace(at_least, threshold=1.0)) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_hop_error", "0.250"),
        ("min_identical_answers", "25.0 %"),
        ("min_valid", "25.0 %"),
        ("max_exact_call_loss", "25.0 pp"),
        ("max_load_ms", "0.250 ms"),
        ("max_call_ratio", "0.25×"),
        ("max_kl_growth", "0.25×"),
    ],
)
def test_a_check_is_shown_in_its_own_unit(name: str, text: str) -> None:
    check = Check(name, "", "", 0.25, None, None, 0.5, "at most", "pass", "")
    assert figures.check_figure(check).replace("\u00a0", " ") == text
