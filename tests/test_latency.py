"""Latency: interleaved contenders in processes of their own, ratios by round, and a stopped one named."""

from pathlib import Path

import pytest

from pipeline.evidence.latency import Contender, measure_latency, this_machine
from runtime.errors import StageError


def test_a_bundle_beside_torch(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    contenders = (
        Contender("unmerged", "merged", tiny_checkpoint),
        Contender("bundle", "bundle", tiny_bundle),
    )
    told: list[tuple[int, int]] = []
    report = measure_latency(
        contenders, (8, 32), 3, runs=3, threads=1, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, 8) for done in range(1, 9)]
    assert [point.prompt_tokens for point in report.points] == [8, 32]
    for point in report.points:
        assert point.ttft["bundle"].samples == 3
        assert point.token["bundle"].samples == 9
        assert 0 < point.ttft["bundle"].p50 <= point.ttft["bundle"].p95 <= point.ttft["bundle"].p99
        assert set(point.ttft_ratio) == set(point.token_ratio) == {"bundle"}
        assert (
            point.token_ratio["bundle"].low
            <= point.token_ratio["bundle"].value
            <= point.token_ratio["bundle"].high
        )
    # torch is in one process and not in the other.
    assert report.footprints["unmerged"].peak_bytes > 2 * report.footprints["bundle"].peak_bytes


def test_a_contender_that_stops_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r'the contender "bundle" stopped: .*no bundle.json'):
        measure_latency((Contender("bundle", "bundle", tmp_path),), (8,), 3, runs=3, threads=1)


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert {"python", "onnxruntime", "torch"} <= set(machine.versions)
