"""Every field of PEFT's LoraConfig and AdaLoraConfig: merged to the same logits, or refused by its name.

docs/merge-conformance.md is the table of what is found here; COCKPIT_WRITE_CONFORMANCE=1 writes it anew.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, PeftType
from transformers import AutoModelForCausalLM

from pipeline.adapter_config import ADALORA_SCHEDULE, WITHOUT_EFFECT
from pipeline.merge import merge
from pipeline.quiet import quiet_transformers
from runtime.errors import AdapterError
from tests.conformance import CASES, Case, make_adapter, make_base

ROOT = Path(__file__).parent.parent
IDS = torch.tensor([[1, 5, 9, 2, 40, 33, 7]])
BOUND = 1e-5
"""Largest logit difference over the largest logit, in float32."""
OTHER_TYPES = sorted({kind.value for kind in PeftType} - {"LORA", "ADALORA"})
VERDICTS: dict[str, str] = {}


def silent(message: str, done: int, total: int) -> None:
    pass


def logits(checkpoint: Path, adapter: Path | None = None) -> torch.Tensor:
    with quiet_transformers(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's about tied weights
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        return model.eval()(IDS).logits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_or_refused_by_name(case: Case, tmp_path: Path) -> None:
    base = make_base(case.base, tmp_path / "base")
    adapter = make_adapter(case, base, tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    if case.refused:
        with pytest.raises(AdapterError, match=f'"{case.refused}"'):
            merge(base, adapter, out, silent)
        assert not list(out.iterdir())
        VERDICTS[case.name] = "refused"
        return
    figures = merge(base, adapter, out, silent)
    wanted = logits(base, adapter)
    assert (wanted - logits(base)).abs().max() > 0.05 * wanted.abs().max()
    error = (logits(out) - wanted).abs().max() / wanted.abs().max()
    assert error < BOUND
    assert figures["merged_tensors"]
    VERDICTS[case.name] = "merged"


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_every_other_type_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("peft_type", kind, written={"peft_type": kind}), base, tmp_path / "adapter")
    with pytest.raises(AdapterError, match=f'"peft_type": "{kind}"'):
        merge(base, adapter, tmp_path, silent)
    VERDICTS[kind] = "refused"


@pytest.mark.parametrize("config", [LoraConfig, AdaLoraConfig])
def test_every_field_of_peft_is_known_here(config: type) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    assert len(fields) > 30
    known = {case.field for case in CASES} | WITHOUT_EFFECT | ADALORA_SCHEDULE | {"peft_type"}
    assert fields - known == set()
    assert known - {field.name for field in dataclasses.fields(AdaLoraConfig)} == set()


def test_what_has_no_effect_is_let_through_and_has_none(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    case = Case("lora_dropout", "0.5", {"lora_dropout": 0.5}, written={"runtime_config": {"a": 1}})
    adapter, out = make_adapter(case, base, tmp_path / "adapter"), tmp_path / "out"
    out.mkdir()
    merge(base, adapter, out, silent)
    wanted = logits(base, adapter)
    assert (logits(out) - wanted).abs().max() < BOUND * wanted.abs().max()


def test_the_page_is_what_was_found() -> None:
    if len(VERDICTS) < len(CASES) + len(OTHER_TYPES):
        pytest.skip("needs the verdicts of all cases: run the whole file")
    rows = ["| field | value | on | verdict |", "|---|---|---|---|"]
    for case in sorted(CASES, key=lambda case: case.field):
        merged = VERDICTS[case.name] == "merged"
        said = f"merged, within {BOUND:.0e}" if merged else f"refused: `{case.refused}`"
        kind = "AdaLoRA, " if case.adalora else ""
        rows.append(f"| `{case.field}` | {case.value} | {kind}{case.base} | {said} |")
    rows.append(f"| `peft_type` | {', '.join(OTHER_TYPES)} | llama | refused: `peft_type` |")
    unheeded = ", ".join(f"`{name}`" for name in sorted(WITHOUT_EFFECT))
    schedule = ", ".join(f"`{name}`" for name in sorted(ADALORA_SCHEDULE))
    rows += ["", f"Without effect on the function: {unheeded}; of AdaLoRA, whose ranks are in its tensors:"]
    rows.append(f"{schedule}.")
    path = ROOT / "docs" / "merge-conformance.md"
    before, marker, _ = path.read_text(encoding="utf-8").partition("<!-- generated -->\n")
    text = before + marker + "\n".join(rows) + "\n"
    if os.environ.get("COCKPIT_WRITE_CONFORMANCE"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
