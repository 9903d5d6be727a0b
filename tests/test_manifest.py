"""bundle.json: read strictly, and every difference between it and the files named at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import BundleError
from runtime.files import MOST_BYTES, File
from runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    NEEDED_FILES,
    AdapterEntry,
    GateCheck,
    GateSummary,
    Limits,
    Lineage,
    Manifest,
    Prompt,
    Requirements,
    manifest_text,
    parse,
    verify,
)

HOSTILE = Path(__file__).parent / "hostile" / "manifests"
GOLDEN = Path(__file__).parent / "golden" / "bundle.json"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refusal(bundle: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        verify(bundle)
    assert caught.value.exit_code == 5
    return caught.value


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed bundle.json in place."""
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_an_intact_bundle(tiny_bundle: Path) -> None:
    manifest = verify(tiny_bundle)
    assert manifest.name == "tiny"
    assert manifest.gate is None
    listed = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert set(manifest.files) == listed - {MANIFEST}
    assert "com.microsoft.GroupQueryAttention" in manifest.requirements.operators


def test_the_golden_manifest_reads_and_writes_the_same() -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    manifest = parse(text)
    assert manifest.gate == GateSummary("pass", (GateCheck("max_mean_kl", 0.004, 0.02, "at most"),))
    assert manifest_text(manifest) == text


def test_a_flipped_byte_in_any_file(bundle: Path) -> None:
    for name in sorted(verify(bundle).files):
        path = bundle / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert refusal(bundle).problems == (f"{name} was changed",)
        path.write_bytes(whole)
    verify(bundle)


def test_all_differences_are_listed_at_once(bundle: Path) -> None:
    (bundle / "tools.json").unlink()
    (bundle / "genai_config.json").write_text("{}", encoding="utf-8")
    (bundle / "more").mkdir()
    (bundle / "more" / "extra.bin").write_bytes(b"x")
    (bundle / "link").symlink_to(bundle / "model.onnx")
    error = refusal(bundle)
    assert len(error.problems) == 4
    text = str(error)
    for said in (
        "tools.json is missing",
        "genai_config.json has 2 bytes",
        "more/extra.bin is not listed",
        "link is a link",
    ):
        assert said in text


def test_a_file_replaced_by_a_link_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").rename(tmp_path / "elsewhere")
    (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere")
    assert any("model.onnx is a link" in problem for problem in refusal(bundle).problems)


def test_a_linked_directory_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x", encoding="utf-8")
    (bundle / "reports").symlink_to(tmp_path / "outside")
    assert refusal(bundle).problems == ("reports is a link; a bundle holds plain files only",)


def test_a_pipe_is_not_opened(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")
    assert refusal(bundle).problems == ("pipe is not a plain file",)


def test_a_truncated_file(bundle: Path) -> None:
    data = (bundle / "model.onnx.data").read_bytes()
    (bundle / "model.onnx.data").write_bytes(data[:-1])
    assert refusal(bundle).problems == (f"model.onnx.data has {len(data) - 1} bytes instead of {len(data)}",)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", GOLDEN):
        assert "is not a bundle" in str(refusal(path))


def test_the_manifest_itself_may_not_be_a_link_or_huge(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).rename(tmp_path / "elsewhere.json")
    (bundle / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    assert "not a plain file" in str(refusal(bundle))
    (bundle / MANIFEST).unlink()
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert "larger than" in str(refusal(bundle))


@pytest.mark.parametrize("keep", [0, 1, 100, 700])
def test_a_truncated_manifest(bundle: Path, keep: int) -> None:
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text(text[:keep], encoding="utf-8")
    assert "not valid JSON" in str(refusal(bundle))


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_other_format_versions_are_not_guessed_at(bundle: Path, version: object) -> None:
    edit(bundle, lambda value: value.update(format_version=version, unheard_of=1))
    assert "this runtime reads 1 only" in str(refusal(bundle))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(extra=1), "extra is not a known field"),
        (lambda m: m["lineage"].update(extra=1), "lineage.extra is not a known field"),
        (lambda m: m.pop("limits"), "limits is missing"),
        (lambda m: m["prompt"].pop("system"), "prompt.system is missing"),
        (lambda m: m["limits"].update(context="256"), "limits.context must be of type int"),
        (lambda m: m["limits"].update(context=True), "limits.context must be of type int"),
        (lambda m: m["limits"].update(context=0), "limits must be positive"),
        (lambda m: m.update(precision="int2"), "precision must be one of"),
        (lambda m: m.update(name="../x"), "name must be of letters"),
        (lambda m: m["prompt"].update(stop_tokens=[]), "at least one token"),
        (lambda m: m["prompt"].update(stop_tokens=[10**9]), "not in the vocabulary"),
        (lambda m: m["prompt"].update(form="xml"), "prompt.form must be one of"),
        (lambda m: m["requirements"].update(onnxruntime="newest"), "must be a version"),
        (lambda m: m.update(gate={"verdict": "fail", "checks": []}), "gate.verdict must be one of 'pass'"),
        (lambda m: m["files"].pop("model.onnx"), "files lists no model.onnx"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 63), "64 hex digits"),
        (lambda m: m["files"]["model.onnx"].update(size=-1), "and a size"),
    ],
)
def test_wrong_fields_are_named(bundle: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit(bundle, change)
    assert any(said in problem for problem in refusal(bundle).problems)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "a/../../b", "./x", "a//b", "a\\b", "C:x", "", "bundle.json", "a\nb", "x/"],
)
def test_paths_that_leave_the_bundle(bundle: Path, name: str) -> None:
    edit(bundle, lambda value: value["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    assert any("is not a plain path inside the bundle" in problem for problem in refusal(bundle).problems)


def test_hostile_manifests() -> None:
    """Every stored attack is refused; its file name says what it is."""
    attacks = sorted(HOSTILE.glob("*.json"))
    assert len(attacks) >= 8
    accepted = []
    for attack in attacks:
        try:
            parse(attack.read_text(encoding="utf-8", errors="surrogateescape"))
        except BundleError:
            continue
        accepted.append(attack.name)
    assert accepted == []


def test_the_specification_names_every_field_and_file() -> None:
    text = (Path(__file__).parent.parent / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    kinds = (Manifest, Lineage, Limits, Requirements, Prompt, GateSummary, GateCheck, File, AdapterEntry)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)} | set(NEEDED_FILES)
    assert sorted(name for name in names if name not in text) == []
    assert f"version {FORMAT_VERSION}" in text
    assert MOST_BYTES == 4 * 1024 * 1024
    assert "4 MiB" in text
