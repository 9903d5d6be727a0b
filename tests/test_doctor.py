"""The doctor finds what is there, and says how to get what is not."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from pipeline import doctor
from pipeline.training import loading
from pipeline.training.precision import Precision
from runtime.errors import ConfigError


def test_this_machine_can_build(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "not" / "there" / "yet")
    assert doctor.healthy(findings), [finding for finding in findings if finding.status == "missing"]
    assert {"Python", "processor", "disk", "torch", "onnxruntime", "GPU"} <= {f.subject for f in findings}


def test_qlora_is_tried_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_multiply_in_four_bits", lambda device: None)
    if loading.qlora_obstacle("cpu") is not None:
        pytest.skip("bitsandbytes is not installed")
    found = {finding.subject: finding for finding in doctor.examine(Path())}["QLoRA"]
    assert (found.status, found.remedy) == ("ok", "")

    def fails(device: str) -> None:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(loading, "_multiply_in_four_bits", fails)
    found = {finding.subject: finding for finding in doctor.examine(Path())}["QLoRA"]
    assert found.status == "note"
    assert found.detail.endswith("(no kernel image)")
    assert found.remedy == "pip install 'bitsandbytes==0.50.2' for train.method = qlora"


def test_qlora_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = {finding.subject: finding for finding in doctor.examine(Path())}["QLoRA"]
    assert (found.status, found.detail) == ("note", "bitsandbytes is not installed")
    assert found.remedy == "pip install 'cockpit-edge[qlora]' for train.method = qlora"
    message = r"cannot run here: bitsandbytes is not installed; pip install 'cockpit-edge\[qlora\]', or take"
    with pytest.raises(ConfigError, match=message):
        loading.load_base(tiny_checkpoint, Precision("cpu", torch.float32), four_bit=True)


def test_what_is_missing_stops_a_build_and_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_BUILD", ("no-such-distribution",))
    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**70)
    findings = doctor.examine(Path())
    missing = {finding.subject: finding for finding in findings if finding.status == "missing"}
    assert set(missing) == {"no-such-distribution", "disk"}
    assert missing["no-such-distribution"].remedy == "pip install 'cockpit-edge[build]'"
    assert "--runs DIR" in missing["disk"].remedy
    assert not doctor.healthy(findings)
