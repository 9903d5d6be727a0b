"""junit.xml: valid, one case for each check, and nothing undecided passes for a success."""

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import sample_report

from pipeline.evidence.report.junit import junit
from runtime.report import Report


@pytest.mark.parametrize(
    "sample", [sample_report.admitted, sample_report.refused, sample_report.undecided, sample_report.bare]
)
def test_every_check_is_a_case_and_every_miss_a_failure(sample: Callable[[], Report]) -> None:
    gate = sample().gate
    suites = ElementTree.fromstring(junit(gate, "sample"))
    cases = suites.findall("testsuite/testcase")
    assert len({case.get("name") for case in cases}) == len(cases) == len(gate.checks)
    found = [[failure.get("type") for failure in case.findall("failure")] for case in cases]
    assert found == [[] if check.verdict == "pass" else [check.verdict] for check in gate.checks]
    for element in (suites, suites[0]):
        assert element.get("tests") == str(len(cases))
        assert element.get("failures") == str(sum(map(bool, found)))


def test_a_failure_says_why_with_figure_and_threshold() -> None:
    suites = ElementTree.fromstring(junit(sample_report.refused().gate, "sample"))
    case = next(case for case in suites.iter("testcase") if str(case.get("name")).startswith("max_mean_kl"))
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message") == "beyond the threshold"
    assert failure.text == "0.430, 95 % interval 0.370 – 0.494; required: at most 0.01"


def test_cases_of_one_threshold_are_told_apart_by_where_they_were_measured() -> None:
    text = junit(sample_report.admitted().gate, "sample")
    names = [str(case.get("name")) for case in ElementTree.fromstring(text).iter("testcase")]
    places = [name.partition(":")[0] for name in names]
    assert len(set(places)) == len(places)
    assert {"max_hop_error[onnx]", "max_cache_error[rewind]", "max_ttft_growth[256]", "min_valid"} <= set(
        places
    )


def test_the_step_that_broke_says_where() -> None:
    suites = ElementTree.fromstring(junit(sample_report.refused().gate, "sample"))
    said = {
        str(case.get("name")).partition(":")[0]: str(failure.text)
        for case in suites.iter("testcase")
        for failure in case.findall("failure")
    }
    wanted = "Breaks at “ONNX float32”: layer 3, attention.qkv (MatMul): error 0.310"
    assert [name for name, text in said.items() if wanted in text] == ["max_hop_error[onnx]"]


def test_undecided_checks_fail() -> None:
    suites = ElementTree.fromstring(junit(sample_report.undecided().gate, "sample"))
    failures = list(suites.iter("failure"))
    assert {failure.get("type") for failure in failures} == {"inconclusive"}
    assert "not measured" in {failure.get("message") for failure in failures}


def test_text_from_elsewhere_cannot_break_the_file() -> None:
    gate = sample_report.refused().gate
    hostile = replace(gate.checks[0], reason='a "b" <c> & \x00\x1b[31m\ud800\uffff 好', subject="]]>\x0b")
    text = junit(replace(gate, checks=(hostile,)), "run <1> & \x07")
    suites = ElementTree.fromstring(text.encode())
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("message") == 'a "b" <c> & \ufffd\ufffd[31m\ufffd\ufffd 好'
    assert suites[0].get("name") == "run <1> & \ufffd"
