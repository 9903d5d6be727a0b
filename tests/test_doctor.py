"""The doctor finds what is there, and says how to get what is not."""

from pathlib import Path

import pytest

from pipeline import doctor


def test_this_machine_can_build(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "not" / "there" / "yet")
    assert doctor.healthy(findings), [finding for finding in findings if finding.status == "missing"]
    assert {"Python", "processor", "disk", "torch", "onnxruntime", "GPU"} <= {f.subject for f in findings}


def test_what_is_missing_stops_a_build_and_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_BUILD", ("no-such-distribution",))
    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**70)
    findings = doctor.examine(Path())
    missing = {finding.subject: finding for finding in findings if finding.status == "missing"}
    assert set(missing) == {"no-such-distribution", "disk"}
    assert missing["no-such-distribution"].remedy == "pip install 'cockpit-edge[build]'"
    assert "--runs DIR" in missing["disk"].remedy
    assert not doctor.healthy(findings)
