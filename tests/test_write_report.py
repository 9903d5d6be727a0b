"""A report is written whole, or the one before it stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sample_report

from pipeline.evidence import admission
from pipeline.evidence.admission import write_report

FILES = ["junit.xml", "report.html", "report.json"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_report_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "report"
    write_report(sample_report.admitted(), folder)
    first = contents(folder)
    assert list(first) == FILES
    (folder / "stale").touch()
    write_report(replace(sample_report.admitted(), name="another"), folder)
    assert list(contents(folder)) == FILES
    assert all(contents(folder)[name] != first[name] for name in FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["report"]


def test_one_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> str:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "report"
    write_report(sample_report.admitted(), folder)
    before = contents(folder)
    monkeypatch.setattr(admission, "junit", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(replace(sample_report.admitted(), name="another"), folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_a_killed_one_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".install-report").mkdir()
    (tmp_path / ".install-report" / "report.json").write_text("{")
    write_report(sample_report.admitted(), tmp_path / "report")
    assert list(contents(tmp_path / "report")) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
