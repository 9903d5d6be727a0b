"""The report's records: a trip through JSON changes nothing, and what is half understood is refused."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import DataError
from runtime.report import (
    SCHEMA_VERSION,
    Answer,
    CallLatency,
    Check,
    Comparison,
    Estimate,
    GateReport,
    Generations,
    Histogram,
    Hop,
    LatencyPoint,
    OwnCalls,
    Report,
    Score,
    distribution,
    from_json,
    read_report,
    to_json,
)

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(
    Histogram,
    st.lists(st.integers(0, 10**6), max_size=8).map(
        lambda counts: Histogram(tuple(map(float, range(len(counts) + 1))), tuple(counts))
    ),
)
SAMPLES = (sample_report.admitted, sample_report.refused, sample_report.undecided, sample_report.bare)


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_whole_report_survives_the_trip(sample: Callable[[], Report]) -> None:
    report = sample()
    assert from_json(Report, to_json(report)) == report


@pytest.mark.parametrize(
    "kind",
    [
        Estimate,
        Comparison,
        Hop,
        Generations,
        Score,
        Answer,
        LatencyPoint,
        CallLatency,
        OwnCalls,
        Check,
        GateReport,
    ],
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_record_survives_the_trip(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(st.from_type(kind))
    again = from_json(kind, to_json(record))
    assert again == record
    assert to_json(again) == to_json(record)


def test_whole_numbers_read_as_floats_where_a_float_is_meant() -> None:
    estimate = from_json(Estimate, '{"value": 1, "low": 0, "high": 2, "units": 3}')
    assert estimate == Estimate(1.0, 0.0, 2.0, 3)
    assert type(estimate.value) is float


def test_a_figure_that_is_not_finite_is_never_written() -> None:
    with pytest.raises(DataError, match="not finite"):
        to_json(Estimate(float("nan"), 0.0, 1.0, 3))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("extra",), 1, "extra is not a known field"),
        (("parity", "rendering", "extra"), 1, "parity.rendering.extra is not a known field"),
        (("name",), 3, "name must be of type str, not 3"),
        (("name",), None, "name must be of type str, not None"),
        (("gate", "verdict"), "maybe", "gate.verdict must be one of 'pass', 'fail', 'inconclusive'"),
        (("gate", "checks"), {}, "gate.checks must be a list"),
        (("gate", "checks", 0, "threshold"), "0.1", "gate.checks[0].threshold must be of type float"),
        (("gate", "checks", 0, "threshold"), True, "gate.checks[0].threshold must be of type float"),
        (("gate", "checks", 0, "threshold"), 10**400, "gate.checks[0].threshold must be of type float"),
        (("latency", "threads"), 2.0, "latency.threads must be of type int, not 2.0"),
        (("latency", "threads"), True, "latency.threads must be of type int, not True"),
        (("lineage",), [], "lineage must be an object"),
        (("sizes", "base"), 1.5, "sizes.base must be of type int"),
        (("parity", "hops", 1), [], "parity.hops[1] must be an object"),
        (("parity", "hops", 0, "sites", 1, "layer"), "0", "parity.hops[0].sites[1].layer must be"),
        (("parity", "cache", 0, "form"), "onnx", "parity.cache[0].form must be one of 'weights_only'"),
        (("parity", "bundle"), {}, "parity.bundle is not a known field"),
        (("gate", "culprit"), {}, "gate.culprit"),
        (("latency", "call"), None, "latency.call must be an object"),
        (("parity", "cache", 0, "way"), "sideways", "parity.cache[0].way must be one of 'decode'"),
        (("parity", "hops", 0, "step", "kl_histogram", "counts"), [1], "a histogram of 1 counts has"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: object, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        from_json(Report, changed(path, value))


def changed(path: tuple[str | int, ...], value: object) -> str:
    """The admitted report's JSON with one value put in place."""
    tree: Any = json.loads(to_json(sample_report.admitted()))
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(tree)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Report)])
def test_no_field_may_be_missing(name: str) -> None:
    tree = json.loads(to_json(sample_report.admitted()))
    del tree[name]
    with pytest.raises(DataError, match=f"{name} is missing"):
        from_json(Report, json.dumps(tree))


@pytest.mark.parametrize(
    "text",
    [
        to_json(sample_report.admitted())[:-9],
        '{"name": "a", "name": "b"}',
        '{"name": NaN}',
        '{"name": Infinity}',
        "[" * 100_000,
    ],
    ids=["truncated", "repeated name", "NaN", "infinity", "too deep"],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="a Report is not valid JSON"):
        from_json(Report, text)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    text = to_json(sample_report.admitted()).replace('"near_tie": 0.001', '"near_tie": 1e999')
    with pytest.raises(DataError, match="near_tie must be finite"):
        from_json(Report, text)


def test_a_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(sample_report.refused()), encoding="utf-8")
    assert read_report(path) == sample_report.refused()


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 1, 0, None, "2"])
def test_another_schema_version_is_refused_before_anything_else(tmp_path: Path, version: object) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema_version": version, "of": "the future"}), encoding="utf-8")
    with pytest.raises(
        DataError, match=f"schema version {version}; this version reads {SCHEMA_VERSION} only"
    ):
        read_report(path)


def test_the_bundle_is_the_last_form_against_the_first() -> None:
    parity = sample_report.admitted().parity
    assert parity.bundle is parity.hops[-1].origin
    assert dataclasses.replace(parity, hops=parity.hops[:-1]).bundle is None


def test_a_distribution_keeps_the_shape_of_what_was_measured() -> None:
    found = distribution([float(value) for value in range(100, -1, -1)])
    assert (found.samples, found.p50, found.p95, found.p99) == (101, 50.0, 95.0, 99.0)
    assert found.ventiles == pytest.approx(tuple(range(0, 101, 5)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"report\.json"):
        read_report(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no report at"):
        read_report(tmp_path / "absent.json")
