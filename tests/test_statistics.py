"""Intervals cover, repeat, and shrink; McNemar agrees with values worked out by hand."""

import numpy as np
import pytest

from pipeline.evidence.statistics import mcnemar, mean, median, ratio_of_sums


def test_ratio_of_sums_weights_units_by_their_size() -> None:
    assert ratio_of_sums([1.0, 9.0], [10.0, 10.0]).value == pytest.approx(0.5)
    assert ratio_of_sums([0.0, 9.0], [1.0, 9.0]).value == pytest.approx(0.9)


def test_a_constant_has_no_interval() -> None:
    for estimate in (mean([0.25] * 7), median([0.25] * 7)):
        assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_the_same_measurements_give_the_same_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=50))
    assert mean(values) == mean(values)


def test_the_interval_covers_the_truth_about_as_often_as_it_claims() -> None:
    random = np.random.default_rng(2)
    covered = sum(low <= 0.3 <= high for low, high in (_interval(random) for _ in range(200)))
    assert 180 <= covered <= 200


def _interval(random: np.random.Generator) -> tuple[float, float]:
    estimate = mean([float(value) for value in random.random(100) < 0.3])
    return estimate.low, estimate.high


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (3, 3, 1.0), (8, 1, 20 / 512)],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, expected: float) -> None:
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert mcnemar(first, second) == pytest.approx(expected)
