"""docs/report-format.md lists every record of report.json; COCKPIT_WRITE_REPORT_FORMAT=1 writes it."""

from __future__ import annotations

import dataclasses
import inspect
import os
from pathlib import Path

from runtime import report

PAGE = Path(__file__).parent.parent / "docs" / "report-format.md"
RECORDS = [
    record
    for record in vars(report).values()
    if inspect.isclass(record) and dataclasses.is_dataclass(record) and record.__module__ == report.__name__
]


def described(record: type) -> str:
    meaning = " ".join((inspect.getdoc(record) or "").split("\n\n")[0].split())
    types = [(field.name, str(field.type).replace("|", r"\|")) for field in dataclasses.fields(record)]
    fields = [f"| `{name}` | `{kind}` |" for name, kind in types]
    return "\n".join([f"## {record.__name__}", "", meaning, "", "| field | type |", "|---|---|", *fields, ""])


def test_the_page_lists_every_record_and_field() -> None:
    assert len(RECORDS) == 25
    before, marker, _ = PAGE.read_text(encoding="utf-8").partition("<!-- generated -->\n")
    text = before + marker + "\n" + "\n".join(described(record) for record in reversed(RECORDS))
    if os.environ.get("COCKPIT_WRITE_REPORT_FORMAT"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
    assert f"Schema version {report.SCHEMA_VERSION}." in before
