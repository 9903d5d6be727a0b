"""Several adapters, NF4, other shards, and a merge that was stopped half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from export.weights import Checkpoint
from pipeline import stages
from pipeline.merge import merge, merge_weighted
from pipeline.merging.plan import Onto
from pipeline.merging.shard import Shard
from pipeline.quiet import quiet_transformers
from pipeline.stage import artifact
from runtime.errors import AdapterError, CheckpointError
from tests.conformance import ADALORA, QKV, Base, Case, make_adapter, make_base

IDS = torch.tensor([[1, 5, 9, 2, 40, 33, 7]])
ROOT = Path(__file__).parent.parent


def silent(message: str, done: int, total: int) -> None:
    pass


def merged(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    onto: Onto = "base",
    shard_bytes: int | None = None,
) -> dict[str, Any]:
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir(exist_ok=True)
    return merge_weighted(base, adapters, out, scratch, silent, onto=onto, shard_bytes=shard_bytes)


def logits(
    checkpoint: Path,
    adapters: Sequence[tuple[Path, float]] = (),
    change: Callable[[torch.nn.Module], None] | None = None,
) -> torch.Tensor:
    """Of a base with unmerged adapters, each times its weight, as PEFT's "cat" adds them up."""
    with quiet_transformers(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if change:
            change(model)
        if adapters:
            names = [f"a{number}" for number in range(len(adapters))]
            model = PeftModel.from_pretrained(model, adapters[0][0], names[0])
            for name, (path, _) in zip(names[1:], adapters[1:], strict=True):
                model.load_adapter(path, name)
            if len(adapters) > 1 or adapters[0][1] != 1.0:
                weights = [weight for _, weight in adapters]
                model.add_weighted_adapter(names, weights, "all", combination_type="cat")
                model.set_adapter("all")
        return model.eval()(IDS).logits


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (2.0,)])
def test_adapters_are_added_up_as_peft_s_cat_does(weights: tuple[float, ...], tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    cases = [
        Case("", ""),
        Case("", "", {"r": 2, "use_rslora": True, "target_modules": ["q_proj", "lm_head"]}),
    ]
    adapters = [
        (make_adapter(case, base, tmp_path / f"adapter{number}", seed=number), weight)
        for number, (case, weight) in enumerate(zip(cases, weights, strict=False))
    ]
    figures = merged(base, adapters, tmp_path / "out")
    wanted = logits(base, adapters)
    assert error(logits(base), wanted) > 0.05
    assert error(logits(tmp_path / "out"), wanted) < 1e-5
    assert 0 < figures["max_error"] <= 1


def test_singular_values_are_added_up_as_well(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", "", ADALORA, adalora=True), base, tmp_path / "adapter")
    merged(base, [(adapter, 1.0)], tmp_path / "whole")
    merged(base, [(adapter, 0.25), (adapter, 0.75)], tmp_path / "parts")
    assert error(logits(tmp_path / "parts"), logits(tmp_path / "whole")) < 1e-5


@pytest.mark.parametrize(
    ("settings", "base", "field"),
    [
        ({"use_dora": True}, "llama", "use_dora"),
        ({"bias": "all"}, "qwen2", "bias"),
        ({"modules_to_save": ["norm"]}, "llama", "modules_to_save"),
    ],
)
def test_what_is_no_sum_is_refused_by_name(
    settings: dict[str, Any], base: Base, field: str, tmp_path: Path
) -> None:
    folder = make_base(base, tmp_path / "base")
    plain = make_adapter(Case("", ""), folder, tmp_path / "plain")
    adapter = make_adapter(Case("", "", settings), folder, tmp_path / "adapter")
    for given in ([(plain, 1.0), (adapter, 1.0)], [(adapter, 0.5)]):
        with pytest.raises(AdapterError, match=rf'has "{field}", which cannot be weighted or added'):
            merged(folder, given, tmp_path / "out")
    merged(folder, [(adapter, 1.0)], tmp_path / "alone")


@pytest.mark.parametrize(
    "case",
    [
        Case("", ""),
        Case("", "", {"use_dora": True}),
        Case("", "", {"target_modules": ["q_proj", "lm_head"]}, "llama, tied"),
    ],
)
def test_onto_nf4_is_what_qlora_was_trained_on(case: Case, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="compares with bitsandbytes")

    def quantize(model: torch.nn.Module) -> None:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                packed, state = functional.quantize_4bit(
                    module.weight.data, blocksize=64, quant_type="nf4", compress_statistics=False
                )
                module.weight.data = functional.dequantize_4bit(packed, state)

    base = make_base(case.base, tmp_path / "base")
    adapter = make_adapter(case, base, tmp_path / "adapter")
    figures = merged(base, [(adapter, 1.0)], tmp_path / "out", "nf4")
    wanted = logits(base, [(adapter, 1.0)], quantize)
    assert error(logits(tmp_path / "out"), wanted) < 1e-5
    merged(base, [(adapter, 1.0)], tmp_path / "plain")
    assert error(logits(tmp_path / "plain"), wanted) > 1e-3
    assert figures["quantized_tensors"] == 14


def test_onto_nf4_needs_an_architecture_that_is_known(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", ""), base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["OtherForCausalLM"]}))
    with pytest.raises(CheckpointError, match="which weights of OtherForCausalLM are kept in NF4"):
        merged(base, [(adapter, 1.0)], tmp_path / "out", "nf4")


def test_a_wrong_element_on_nf4_or_of_a_module_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, spoiled = Shard.write, ""

    def faulty(self: Shard, name: str, start: int, values: Any) -> None:
        values = values.copy()
        if name == spoiled:
            values.reshape(-1)[7] += np.float32(1e-5) * np.abs(values).max()
        write(self, name, start, values)

    monkeypatch.setattr(Shard, "write", faulty)
    base = make_base("qwen2", tmp_path / "base")
    settings = {"modules_to_save": ["lm_head"], "bias": "all", "target_modules": ["q_proj", "up_proj"]}
    everything = make_adapter(Case("", "", settings), base, tmp_path / "everything")
    biased = make_adapter(Case("", "", {"lora_bias": True, "target_modules": QKV}), base, tmp_path / "biased")
    lengths = {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}
    dora = make_adapter(Case("", "", lengths), base, tmp_path / "dora")
    attention = "model.layers.1.self_attn"
    trials: list[tuple[Path, str, Onto]] = [
        (everything, "lm_head.weight", "base"),
        (everything, f"{attention}.v_proj.bias", "base"),
        (everything, f"{attention}.k_proj.weight", "nf4"),
        (everything, f"{attention}.q_proj.weight", "nf4"),
        (biased, f"{attention}.q_proj.bias", "base"),
        (dora, f"{attention}.q_proj.weight", "base"),
        (dora, "model.embed_tokens.weight", "base"),
    ]
    for number, (adapter, name, onto) in enumerate(trials):
        spoiled = name
        with pytest.raises(AdapterError, match=rf'"{name}" (is not what|has no update but)'):
            merged(base, [(adapter, 1.0)], tmp_path / str(number), onto)
        assert not list((tmp_path / str(number)).iterdir())


def test_a_layer_of_zeros_with_an_update_of_zeros_proves(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", "", {"target_modules": ["q_proj"]}), base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj"
    for folder, key in ((base, f"{name}.weight"), (adapter, f"base_model.model.{name}.lora_B.weight")):
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        tensors[key][:] = 0.0
        save_file(tensors, file, {"format": "pt"})
    figures = merged(base, [(adapter, 1.0)], tmp_path / "out")
    assert not load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"].any()
    assert 0 < figures["max_error"] <= 1


def test_another_size_of_shards_holds_the_same_tensors(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", ""), base, tmp_path / "adapter")
    merged(base, [(adapter, 1.0)], tmp_path / "one")
    merged(base, [(adapter, 1.0)], tmp_path / "many", shard_bytes=100_000)
    merged(tmp_path / "many", [(adapter, 1.0)], tmp_path / "again", shard_bytes=10**9)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 105_000 for file in files)
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    one, many = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert set(one.names) == set(many.names)
    for name in one.names:
        np.testing.assert_array_equal(one.read(name), many.read(name))
    assert error(logits(tmp_path / "many"), logits(tmp_path / "one")) == 0
    assert sorted(file.name for file in (tmp_path / "again").glob("model*")) == ["model.safetensors"]


def test_whole_files_of_a_stopped_merge_are_kept_and_others_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", ""), base, tmp_path / "adapter")
    other = make_adapter(Case("", ""), base, tmp_path / "other", seed=5)
    merged(base, [(adapter, 1.0)], tmp_path / "wanted", shard_bytes=50_000)
    merged(base, [(other, 1.0)], tmp_path / "stale", shard_bytes=50_000)
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "wanted").glob("*.safetensors")}
    names = sorted(wanted)
    scratch = tmp_path / "out-scratch"
    scratch.mkdir()
    (scratch / names[0]).write_bytes(wanted[names[0]])
    (scratch / names[1]).write_bytes((tmp_path / "stale" / names[1]).read_bytes())
    (scratch / names[2]).write_bytes(wanted[names[2]][:-1])
    (scratch / f"{names[3]}.partial").write_bytes(wanted[names[3]][:999])
    spoiled = bytearray(wanted[names[4]])
    spoiled[-2] ^= 1
    (scratch / names[4]).write_bytes(spoiled)
    written: set[str] = set()
    write = Shard.write

    def told(self: Shard, name: str, start: int, values: Any) -> None:
        written.add(self._path.name)
        write(self, name, start, values)

    monkeypatch.setattr(Shard, "write", told)
    figures = merged(base, [(adapter, 1.0)], tmp_path / "out", shard_bytes=50_000)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.safetensors")} == wanted
    assert written == set(names) - {names[0]}
    assert len(figures["relative_update"]) == 14
    assert not list(scratch.iterdir())


def test_a_killed_merge_leaves_nothing_that_looks_whole_and_goes_on(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", ""), base, tmp_path / "adapter")
    script = """
import sys, time
from pathlib import Path
from pipeline.merging.shard import Shard
from pipeline import cli
finish, done = Shard.finish, []
def stuck(self):
    if len(done) == 2:
        Path("stuck").touch()
        time.sleep(60)
    finish(self)
    done.append(self)
if "slow" in sys.argv:
    sys.argv.remove("slow")
    Shard.finish = stuck
cli.main()
"""
    line = [sys.executable, "-c", script, "merge", "base", "adapter", "--out", "out", "--shard-size", "100KB"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*line, "slow"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "stuck").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".work-out").glob("*.safetensors")}
    assert len(kept) == 2
    subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert not (tmp_path / ".work-out").exists()
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    merged(base, [(adapter, 1.0)], tmp_path / "wanted", shard_bytes=100_000)
    for file in (tmp_path / "wanted").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_stage_takes_what_it_is_merged_onto(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", ""), base, tmp_path / "adapter")
    plans = [stages.merged(artifact(base), artifact(adapter), onto=onto) for onto in ("base", "nf4")]
    assert plans[0].stage.key() != plans[1].stage.key()
    found = []
    for plan in plans:
        out, own = tmp_path / f"out-{len(found)}", tmp_path / f"own-{len(found)}"
        out.mkdir()
        own.mkdir()
        found.append(plan.work(out, own, silent)["quantized_tensors"])
    assert found == [0, 14]


def test_the_same_folder_in_and_out_of_scratch_gives_the_same_bytes(tmp_path: Path) -> None:
    base = make_base("llama, tied", tmp_path / "base")
    adapter = make_adapter(Case("", "", {"target_modules": ["lm_head"]}), base, tmp_path / "adapter")
    merged(base, [(adapter, 1.0)], tmp_path / "one")
    (tmp_path / "two").mkdir()
    merge(base, adapter, tmp_path / "two", silent)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_command_line_takes_adapters_with_weights(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    one = make_adapter(Case("", ""), base, tmp_path / "one=1", seed=3)
    two = make_adapter(Case("", "", {"r": 2}), base, tmp_path / "two", seed=4)
    line = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "merge",
        "base",
        "one=1",
        "two=-0.5",
    ]
    subprocess.run(
        [*line, "--onto", "nf4", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    merged(base, [(one, 1.0), (two, -0.5)], tmp_path / "wanted", "nf4")
    for file in (tmp_path / "wanted").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    record = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert record["config"] == {"weights": [1.0, -0.5], "onto": "nf4", "shard_bytes": None}
    assert set(record["lineage"]) == {"base", "adapter", "adapter_2"}
