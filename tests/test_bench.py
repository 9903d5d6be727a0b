"""The meter's figures are of what it says it measures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from runtime.bench import bench, peak_bytes
from runtime.errors import PromptError, UsageError


def test_figures_are_complete_and_plausible(tiny_bundle: Path) -> None:
    result = bench(tiny_bundle, prompt_tokens=32, new_tokens=4, runs=3, threads=1)
    assert result.ttft.samples == 3
    assert result.token.samples == 12
    for times in (result.ttft, result.token):
        assert 0 < times.p50 <= times.p95 <= times.p99
    assert result.load_ms > 0
    assert result.prefill_tokens_per_second == pytest.approx(32 / result.ttft.p50 * 1000)
    assert result.decode_tokens_per_second == pytest.approx(1000 / result.token.p50)
    assert (result.name, result.precision, result.threads) == ("tiny", "fp32", 1)
    assert json.loads(json.dumps(dataclasses.asdict(result)))["peak_bytes"] == result.peak_bytes


def test_one_run_is_all_of_its_percentiles(tiny_bundle: Path) -> None:
    ttft = bench(tiny_bundle, prompt_tokens=8, new_tokens=1, runs=1, threads=1).ttft
    assert ttft.samples == 1
    assert {ttft.p50, ttft.p95, ttft.p99} == set(ttft.ventiles)
    assert len(ttft.ventiles) == 21


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_bytes()
    held = bytearray(b"x") * (before + (64 << 20))
    assert peak_bytes() >= len(held)


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"new_tokens": 0}, {"runs": 0}, {"threads": 0}])
def test_counts_must_be_positive(tiny_bundle: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        bench(tiny_bundle, **wrong)


def test_what_does_not_fit_the_context(tiny_bundle: Path) -> None:
    with pytest.raises(PromptError, match="context"):
        bench(tiny_bundle, prompt_tokens=250, new_tokens=10, runs=1, threads=1)
