"""Training: what is learnt, what is written, what stops it, and what it goes on from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.fingerprint import FINGERPRINT, fingerprint
from pipeline.quiet import quiet_transformers
from pipeline.train import train
from pipeline.training.precision import cpu_multiplies_bfloat16
from pipeline.training.record import TRAINING, trained_prompt
from pipeline.training.resume import COMPLETE, SETTINGS, claim, newest_complete
from runtime.errors import CheckpointError, ConfigError, TrainingError
from tests.tiny_training import KilledError, config, killed_at, run, write_data

FILES = {"adapter_config.json", "adapter_model.safetensors", FINGERPRINT, TRAINING}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_tools_file: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), tiny_tools_file)


def test_the_adapter_is_a_peft_folder_that_answers_better(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    out = tmp_path / "adapter"
    out.mkdir()
    settings = config(data / "tools.json", epochs=12.0)
    figures = train(settings, tiny_checkpoint, data, out, tmp_path / "work", lambda *what: told.append(what))
    assert {path.name for path in out.iterdir()} == FILES
    losses = figures["validation_loss"]
    assert isinstance(losses, dict)
    assert losses["after"] < 0.5 * losses["before"]
    with quiet_transformers():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), out)
    assert model.peft_config["default"].base_model_name_or_path == "tiny"
    recorded = json.loads((out / TRAINING).read_text())
    assert recorded == {key: figures[key] for key in recorded}
    assert trained_prompt(out) == settings.data.system
    assert recorded["trainable_parameters"] == sum(
        p.numel() for name, p in model.named_parameters() if "lora_" in name
    )
    assert [entry["step"] for entry in recorded["curve"]] == list(range(1, recorded["steps"] + 1))
    assert 0.2 < recorded["supervised_share"] < 0.8
    assert json.loads((out / FINGERPRINT).read_text())["digest"] == fingerprint(tiny_checkpoint).digest
    steps = recorded["steps"]
    assert told[-2] == (told[-2][0], steps, steps)
    assert "loss" in told[-2][0]


def test_packed_rows_have_the_loss_and_gradient_of_single_conversations(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """One step over everything: packed in one row, or a row for each conversation, accumulated."""
    _, packed = run(
        config(data / "tools.json", tokens_per_step=2000, max_steps=1),
        tiny_checkpoint,
        data,
        tmp_path / "packed",
    )
    _, single = run(
        config(data / "tools.json", tokens_per_step=16, max_steps=1, gradient_accumulation=12),
        tiny_checkpoint,
        data,
        tmp_path / "single",
    )
    assert (packed["rows"], single["rows"]) == (1, 12)
    assert packed["curve"][0]["loss"] == pytest.approx(single["curve"][0]["loss"], rel=1e-5)
    assert packed["curve"][0]["grad_norm"] == pytest.approx(single["curve"][0]["grad_norm"], rel=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", max_steps=3)
    first, _ = run(settings, tiny_checkpoint, data, tmp_path / "first")
    again, _ = run(settings, tiny_checkpoint, data, tmp_path / "again")
    other, _ = run(settings.model_copy(update={"seed": 1}), tiny_checkpoint, data, tmp_path / "other")
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes()
    weights = "adapter_model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


def test_a_killed_training_goes_on_from_the_newest_whole_checkpoint(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", max_steps=7)
    whole, _ = run(settings, tiny_checkpoint, data, tmp_path / "whole")

    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    with pytest.raises(KilledError):
        train(settings, tiny_checkpoint, data, out, work, killed_at(5))
    assert list(out.iterdir()) == []
    half = work / "checkpoint-6"
    shutil.copytree(work / "checkpoint-4", half)
    (half / COMPLETE).unlink()
    (half / "adapter_model.safetensors").write_bytes(b"cut short")
    resumed, figures = run(settings, tiny_checkpoint, data, tmp_path / "resumed", work)
    assert figures["resumed_from_step"] == 4
    for name in FILES:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_the_newest_whole_checkpoint_of_the_same_training_is_kept(tmp_path: Path) -> None:
    settings = {"train": {"r": 16, "alpha": 32.0}, "seed": 0}
    claim(tmp_path, settings)
    for step, marker in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if marker:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"
    claim(tmp_path, settings)
    assert not (tmp_path / "checkpoint-12").exists()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_checkpoints_of_another_training_are_refused_with_every_difference(tmp_path: Path) -> None:
    claim(tmp_path, {"train": {"r": 16, "method": "lora", "dropout": 0.0}, "seed": 0})
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / COMPLETE).touch()
    with pytest.raises(ConfigError) as refused:
        claim(tmp_path, {"train": {"r": 8, "method": "dora", "patience": None}, "seed": 0})
    assert str(refused.value) == (
        f"{tmp_path} holds an unfinished training with other settings: train.dropout: 0.0 there, unset here; "
        'train.method: "lora" there, "dora" here; train.patience: unset there, null here; '
        "train.r: 16 there, 8 here; name another folder or delete it"
    )
    assert newest_complete(tmp_path) is not None


def test_what_no_checkpoint_came_of_is_cleared_away(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0})
    (tmp_path / "checkpoint-2").mkdir()
    claim(tmp_path, {"seed": 1})
    assert {path.name for path in tmp_path.iterdir()} == {SETTINGS}
    assert json.loads((tmp_path / SETTINGS).read_text()) == {"seed": 1}


def test_a_loss_that_is_not_finite_stops_at_once_and_writes_nothing(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", learning_rate=1e30, max_grad_norm=1e30, warmup_share=0.0)
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step [23]: lower train.learning_rate"):
        run(settings, tiny_checkpoint, data, tmp_path)
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_changed_base_weight_is_noticed(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    norms: list[torch.Tensor] = []
    load = AutoModelForCausalLM.from_pretrained

    def remembering(*args: object, **settings: object) -> object:
        model = load(*args, **settings)
        norms.append(model.model.layers[1].input_layernorm.weight)
        return model

    def drifting(self: torch.optim.AdamW, *args: object) -> object:
        norms[0].data[0] += 1e-3
        return step(self, *args)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remembering)
    monkeypatch.setattr(torch.optim.AdamW, "step", drifting)
    message = r'changed 1 of \d+ weights.*"model.layers.1.input_layernorm.weight"'
    with pytest.raises(TrainingError, match=message):
        run(config(data / "tools.json", max_steps=1), tiny_checkpoint, data, tmp_path)
    assert list((tmp_path / "adapter").iterdir()) == []


def test_a_target_that_is_no_layer_is_refused_with_the_nearest_name(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", target_modules=("q_proj", "k_porj", "router"))
    with pytest.raises(ConfigError) as refused:
        run(settings, tiny_checkpoint, data, tmp_path)
    assert 'called "k_porj"; did you mean "k_proj"?' in str(refused.value)
    assert 'called "router"; the base has down_proj, gate_proj' in str(refused.value)


def test_a_base_that_cannot_be_loaded_is_one_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot load"):
        run(config(data / "tools.json"), tmp_path / "empty", data, tmp_path)


def test_bfloat16_learns_too(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    _, figures = run(
        config(data / "tools.json", dtype="bfloat16", epochs=12.0), tiny_checkpoint, data, tmp_path
    )
    losses = figures["validation_loss"]
    assert isinstance(losses, dict)
    assert math.isfinite(losses["after"])
    assert losses["after"] < 0.5 * losses["before"]
    assert figures["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor: 0\nflags : fpu avx512f avx512_bf16\n", True),
        ("Features : fp asimd bf16 i8mm\n", True),
        ("flags : fpu avx512f avx512_vnni\n", False),
    ],
)
def test_bfloat16_is_native_where_the_kernel_says_so(tmp_path: Path, text: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is native
    assert not cpu_multiplies_bfloat16(tmp_path / "absent")
