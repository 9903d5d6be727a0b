"""Choosing a token: exact on small rows."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import ConstraintError, UsageError
from runtime.sampling import GREEDY, Sampling, choose, choose_among, probabilities

LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))
RANDOM = np.random.default_rng(0)


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert choose(LOGITS, GREEDY, RANDOM) == 1
    assert choose(np.array([0, 2, 2, 1], np.float32), GREEDY, RANDOM) == 1


def test_temperature_one_is_softmax() -> None:
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=1.0)), [0.1, 0.4, 0.3, 0.2])


def test_temperature_sharpens_and_flattens() -> None:
    squared = np.array([0.01, 0.16, 0.09, 0.04])
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=0.5)), squared / squared.sum())
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=1e6)), 0.25, atol=1e-4)


def test_top_k() -> None:
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=1.0, top_k=2)), [0, 4 / 7, 3 / 7, 0])
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=1.0, top_k=99)), [0.1, 0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 3 / 7, 0]),
        (0.75, [0, 4 / 9, 3 / 9, 2 / 9]),
        (1.0, [0.1, 0.4, 0.3, 0.2]),
        (1e-9, [0, 1, 0, 0]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, expected: list[float]) -> None:
    assert np.allclose(probabilities(LOGITS, Sampling(temperature=1.0, top_p=top_p)), expected)


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    sampling = Sampling(temperature=1.0)

    def draw(seed: int) -> list[int]:
        random = np.random.default_rng(seed)
        return [choose(LOGITS, sampling, random) for _ in range(2000)]

    shares = np.bincount(draw(1), minlength=4) / 2000
    assert np.allclose(shares, [0.1, 0.4, 0.3, 0.2], atol=0.04)
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_only_what_is_allowed_is_chosen() -> None:
    allowed = np.array([0, 3])
    assert choose_among(allowed, LOGITS, GREEDY, RANDOM) == 3
    drawn = [choose_among(allowed, LOGITS, Sampling(temperature=1.0), RANDOM) for _ in range(300)]
    assert set(drawn) == {0, 3}


def test_nothing_allowed_is_an_error() -> None:
    with pytest.raises(ConstraintError, match="no token"):
        choose_among(np.array([], np.int64), LOGITS, GREEDY, RANDOM)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
