"""Claims that follow from shapes and counts, and the verdict on any figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.claims import guide
from pipeline.claims.finding import Claim, Finding, computed, exactly, judge, measured, unmeasured
from pipeline.claims.guide import CLAIMS, QWEN_1_5B
from pipeline.claims.parameters import Counts, count, decoder_update, from_files, from_shapes, worked_example
from pipeline.merge import merge
from runtime.errors import AdapterError, UsageError
from runtime.report import Estimate

SMOLLM2 = Counts(
    base=134_515_008,
    base_bytes=538_060_032,
    lora=4_884_480,
    lora_bytes=19_600_000,
    layers={
        f"model.layers.{layer}.{name}.weight": (*shape, 16)
        for layer in range(30)
        for name, shape in {
            "self_attn.q_proj": (576, 576),
            "self_attn.k_proj": (192, 576),
            "self_attn.v_proj": (192, 576),
            "self_attn.o_proj": (576, 576),
            "mlp.gate_proj": (1536, 576),
            "mlp.up_proj": (1536, 576),
            "mlp.down_proj": (576, 1536),
        }.items()
    },
    scales=(2.0,),
)
"""SmolLM2-135M's shapes, adapted as by default."""


def by_claim(findings: list[Finding]) -> dict[Claim, Finding]:
    return {finding.claim: finding for finding in findings}


def value(finding: Finding) -> float:
    assert finding.figure is not None
    return finding.figure.value


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.0, 3.0, "holds"),
        (2.4, 2.6, "holds"),
        (2.45, 3.0, "unmeasured"),
        (2.0, 2.55, "unmeasured"),
        (2.61, 3.0, "fails"),
        (1.0, 2.39, "fails"),
        (None, 2.6, "holds"),
        (2.4, None, "holds"),
        (None, 2.3, "fails"),
        (2.7, None, "fails"),
        (2.5, 2.5, "unmeasured"),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(
    low: float | None, high: float | None, verdict: str
) -> None:
    assert judge(Estimate(2.5, 2.4, 2.6, 7), low, high) == verdict


def test_an_interval_that_decides_nothing_says_so() -> None:
    straddling = measured(guide.SPEEDUP, Estimate(15.0, 14.0, 16.0, 7), "steps")
    assert straddling.verdict == "unmeasured"
    assert straddling.note == "steps; the interval lies on both sides of what is claimed"
    assert measured(guide.SPEEDUP, exactly(1.5), "steps").note == "steps"
    assert measured(guide.SPEEDUP, exactly(1.5), "steps").verdict == "fails"
    assert computed(guide.SPEEDUP, 17.0, "steps").verdict == "holds"
    nothing = unmeasured(guide.SPEEDUP, "no memory")
    assert (nothing.figure, nothing.verdict, nothing.note) == (None, "unmeasured", "no memory")


def test_the_figures_of_the_guide_that_are_arithmetic() -> None:
    found = by_claim(from_shapes(SMOLLM2))
    expected = {
        guide.COMPRESSION: (16.0, "holds"),
        guide.FORMULA: (1.0, "holds"),
        guide.SHARE_ARITHMETIC: (8_388_608 / 1.5e9, "holds"),
        guide.SHARE_1_5B: (18_464_768 / 1_543_714_304, "fails"),
        guide.SHARE_HERE: (4_884_480 / 134_515_008, "fails"),
        guide.GRADIENTS_FULL: (6e9, "fails"),
        guide.GRADIENTS_LORA: (33_554_432.0, "fails"),
        guide.MEMORY_ARITHMETIC: (1.5e9 / 8_388_608, "holds"),
        guide.ADAPTER_BYTES: (19.6e6, "holds"),
        guide.STORAGE_SAVED: (1 - 19_600_000 / 538_060_032, "fails"),
        guide.MERGED_FORMULA: (2.0, "fails"),
        guide.COMPLEXITY: (1.0625, "fails"),
        guide.WEIGHTS_EXAMPLE: (1.0625, "holds"),
        guide.WEIGHTS_HERE: (139_399_488 / 134_515_008, "fails"),
        guide.EXAMPLE_ALONE: (0.0, "holds"),
        guide.EXAMPLE_CORRECT: (0.0, "holds"),
    }
    for claim, (figure, verdict) in expected.items():
        assert value(found[claim]) == pytest.approx(figure, rel=1e-12, abs=1e-12), claim.english
        assert found[claim].verdict == verdict, claim.english
    assert set(found) == {*expected, guide.QLORA}
    # 106,168,320 adapted weights at 4.127 bits, 28,346,688 at 16, over all at 16.
    assert value(found[guide.QLORA]) == pytest.approx(0.4143, abs=1e-4)


def test_the_worked_example_is_multiplied_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "ALONE", ((0.25,), (0.31,)))
    alone, correct = worked_example()
    assert value(alone) == pytest.approx(0.01)
    assert (alone.verdict, correct.verdict) == ("fails", "holds")


def test_a_1_5_b_decoder_is_counted_from_its_shapes() -> None:
    assert decoder_update(QWEN_1_5B, 16) == 18_464_768
    embedding, biases, norms = 151_936 * 1536, 1536 + 256 + 256, 2 * 1536
    weights = sum(d * k for d, k in QWEN_1_5B.projections)
    assert QWEN_1_5B.layers * (weights + biases + norms) + 1536 + embedding == QWEN_1_5B.parameters


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on two projections, B not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    return folder


def test_counts_are_those_of_the_files(tiny_checkpoint: Path, adapter: Path) -> None:
    found = count(tiny_checkpoint, adapter)
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    assert found.base == sum(tensor.numel() for tensor in tensors.values())
    assert found.base_bytes == 4 * found.base
    assert found.formula == found.lora == 2 * 4 * ((64 + 64) + (64 + 128))
    assert found.adapted == 2 * (64 * 64 + 64 * 128)
    assert found.lora_bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert found.scales == (1.0,)
    assert by_claim(from_shapes(found))[guide.MERGED_FORMULA].verdict == "holds"


def test_an_adapter_that_is_none_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is no adapter"):
        count(tiny_checkpoint, tmp_path)


def test_an_adapter_without_pairs_is_refused(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "other" / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="has no LoRA update of a weight"):
        count(tiny_checkpoint, tmp_path / "other")


def test_what_merging_changed_is_found_tensor_by_tensor(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(tiny_checkpoint, adapter, merged, lambda message, done, total: None)
    counts = count(tiny_checkpoint, adapter)
    targets, form = from_files(tiny_checkpoint, merged, counts)
    assert (value(targets), targets.verdict) == (0, "holds")
    assert targets.note.startswith("4 of 4 adapted weights differ")
    assert (value(form), form.verdict) == (0, "holds")

    tensors = load_file(merged / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    tensors["extra"] = torch.zeros(3)
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    targets, form = from_files(tiny_checkpoint, merged, counts)
    assert (value(targets), targets.verdict) == (1, "fails")
    assert (value(form), form.verdict) == (1, "fails")


def test_the_guide_is_listed_whole() -> None:
    assert len(CLAIMS) == len(set(CLAIMS)) == 50
    assert len({claim.section for claim in CLAIMS}) == 16
    for claim in CLAIMS:
        assert claim.english
        assert claim.said
        assert json.dumps(claim.chinese) != json.dumps(claim.chinese, ensure_ascii=False), claim.english
        if claim.low is not None and claim.high is not None:
            assert claim.low <= claim.high
