"""The gate as JUnit XML, which CI systems show as a list of tests: one test case for each check."""

from __future__ import annotations

from xml.etree import ElementTree

from pipeline.evidence.report.checks import culprit_sentence
from pipeline.evidence.report.figures import check_figure, check_interval, check_threshold, printable
from runtime.report import Check, GateReport


def junit(gate: GateReport, name: str) -> str:
    """The checks as a test suite; a check that failed or could not be decided is a failure of that type.

    Source: the dialect of Apache Ant's JUnit task, in the subset that Jenkins and GitLab both read.

    Args:
        gate: the checks.
        name: of the suite, such as the name of the run.
    """
    missed = [check for check in gate.checks if check.verdict != "pass"]
    totals = {"tests": str(len(gate.checks)), "failures": str(len(missed)), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": printable(name), **totals, "time": "0"})
    for check in gate.checks:
        # One threshold judges several figures: a name alone would be several cases.
        at = f"[{check.at}]" if check.at else ""
        title = printable(f"{check.name}{at}: {check.subject}")
        classname = printable(f"{name}.{gate.precision}")
        case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": title, "time": "0"})
        if check.verdict != "pass":
            failure = ElementTree.SubElement(
                case, "failure", {"type": check.verdict, "message": printable(check.reason)}
            )
            failure.text = _measured(check)
            if gate.culprit is not None and gate.culprit.hop == check.at:
                failure.text += f"\n{printable(culprit_sentence(gate, 'en'))}"
    ElementTree.indent(suites)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
    )


def _measured(check: Check) -> str:
    interval = f", 95 % interval {check_interval(check)}" if check_interval(check) else ""
    return f"{check_figure(check)}{interval}; required: {check.direction} {check_threshold(check)}"
