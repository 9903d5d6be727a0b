"""Packaging and admission: whole or not there, inputs untouched, nothing admitted that did not pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from export.bundle import Description, admit, answer_form, package
from pipeline.provenance import directory_files
from runtime.errors import BundleError, DataError, ExportError, GateError, UsageError
from runtime.manifest import GateCheck, GateSummary, verify
from runtime.report import Check, GateReport


@pytest.fixture
def exported(tiny_exported: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_exported, tmp_path / "exported"))


def gate(verdict: Literal["pass", "fail", "inconclusive"], value: float | None = 0.001) -> GateReport:
    check = Check("max_mean_kl", "", "KL", value, None, None, 0.02, "at most", verdict, "because")
    return GateReport("fp32", (check,), verdict, None)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_candidate_says_what_it_is(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    before = directory_files(exported)
    written = package(exported, tmp_path / "candidate", tiny_tools_file, tiny_description)
    assert verify(tmp_path / "candidate") == written
    assert directory_files(exported) == before
    assert written.limits.context == 256
    assert written.prompt.stop_tokens == (2,)
    assert written.gate is None
    assert {"com.microsoft.GroupQueryAttention", "ai.onnx.ReduceSum"} <= set(written.requirements.operators)
    assert (tmp_path / "candidate" / "tools.json").read_bytes() == tiny_tools_file.read_bytes()
    assert leftovers(tmp_path) == []


def test_an_empty_directory_may_become_the_bundle(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    (tmp_path / "candidate").mkdir()
    package(exported, tmp_path / "candidate", tiny_tools_file, tiny_description)
    verify(tmp_path / "candidate")


def test_nothing_is_written_over(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    out = tmp_path / "candidate"
    out.mkdir()
    (out / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="already exists"):
        package(exported, out, tiny_tools_file, tiny_description)
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja", "genai_config.json"])
def test_an_export_that_is_not_whole(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path, name: str
) -> None:
    (exported / name).unlink()
    with pytest.raises(ExportError, match=name):
        package(exported, tmp_path / "candidate", tiny_tools_file, tiny_description)
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("config", ["", "[]", '{"model": {}}', '{"model": {"context_length": "x"}}'])
def test_a_genai_config_that_says_too_little(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path, config: str
) -> None:
    (exported / "genai_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ExportError, match="genai_config"):
        package(exported, tmp_path / "candidate", tiny_tools_file, tiny_description)


def test_a_manifest_that_no_reader_would_accept_leaves_nothing(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(tiny_description, name="no spaces")
    with pytest.raises(BundleError, match="malformed"):
        package(exported, tmp_path / "candidate", tiny_tools_file, wrong)
    assert not (tmp_path / "candidate").exists()
    assert leftovers(tmp_path) == []


def test_tools_that_cannot_be_enforced(exported: Path, tmp_path: Path, tiny_description: Description) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(
        '[{"name": "f", "parameters": {"type": "object", "minProperties": 1}}]', encoding="utf-8"
    )
    with pytest.raises(DataError, match="minProperties"):
        package(exported, tmp_path / "candidate", tools, tiny_description)


def test_admission_adds_the_evidence(tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}", encoding="utf-8")
    before = directory_files(tiny_bundle)
    written = admit(tiny_bundle, tmp_path / "bundle", gate("pass"), {"report.json": report})
    assert directory_files(tiny_bundle) == before
    assert verify(tmp_path / "bundle") == written
    assert written.gate == GateSummary("pass", (GateCheck("max_mean_kl", 0.001, 0.02, "at most"),))
    assert set(written.files) == {*verify(tiny_bundle).files, "reports/report.json"}


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_only_a_pass_is_admitted(
    tiny_bundle: Path, tmp_path: Path, verdict: Literal["fail", "inconclusive"]
) -> None:
    with pytest.raises(GateError, match="max_mean_kl"):
        admit(tiny_bundle, tmp_path / "bundle", gate(verdict), {})
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_without_checks_or_with_a_failed_one_is_no_pass(tiny_bundle: Path, tmp_path: Path) -> None:
    for wrong in (
        GateReport("fp32", (), "pass", None),
        dataclasses.replace(gate("fail"), verdict="pass"),
        gate("pass", value=None),
    ):
        with pytest.raises(GateError):
            admit(tiny_bundle, tmp_path / "bundle", wrong, {})


def test_a_candidate_altered_after_it_was_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    candidate = Path(shutil.copytree(tiny_bundle, tmp_path / "candidate"))
    (candidate / "tools.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tools\.json"):
        admit(candidate, tmp_path / "bundle", gate("pass"), {})
    assert not (tmp_path / "bundle").exists()


def test_the_form_of_answers_follows_the_template(exported: Path) -> None:
    assert answer_form(exported) == "json"
    template = exported / "chat_template.jinja"
    template.write_text("{% for c in message.tool_calls %}<tool_call>{% endfor %}", encoding="utf-8")
    assert answer_form(exported) == "hermes"
    template.write_text("{% for c in message.tool_calls %}[TOOL]{% endfor %}", encoding="utf-8")
    with pytest.raises(DataError, match="not known here"):
        answer_form(exported)
    template.unlink()
    with pytest.raises(ExportError, match="chat_template"):
        answer_form(exported)


def test_a_builds_own_record_is_no_part_of_the_bundle(
    exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    (exported / "stage.json").write_text(json.dumps({"stage": "onnx"}), encoding="utf-8")
    written = package(exported, tmp_path / "candidate", tiny_tools_file, tiny_description)
    assert "stage.json" not in written.files
    assert not (tmp_path / "candidate" / "stage.json").exists()
    (tmp_path / "candidate" / "stage.json").write_text("{}", encoding="utf-8")
    assert verify(tmp_path / "candidate") == written
