"""Validation on the way: the curve, when training stops, whose weights are kept, and what a restart knows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from pipeline.training.best import EarlyStopping, Measurements
from runtime.errors import TrainingError
from tests.tiny_training import KilledError, config, killed_at, run, write_data

WEIGHTS = "adapter_model.safetensors"
OVERSHOOTS = {"learning_rate": 0.3, "scheduler": "constant", "warmup_share": 0.0, "max_steps": 30}
"""A rate at which the loss falls at first and then no longer."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_tools_file: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), tiny_tools_file)


class Told:
    """An early stopping that is told its losses, one a step, over a model of one weight."""

    def __init__(self, losses: list[float], patience: int | None, every: int = 1) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self._losses = iter(losses)
        self.stopping = EarlyStopping(self.model, lambda: next(self._losses), every, patience)

    def step(self, number: int, last: int = 100) -> bool:
        with torch.no_grad():
            self.model.weight.fill_(number)
        control = TrainerControl()
        state = TrainerState(global_step=number, max_steps=last)
        self.stopping.on_step_end(TrainingArguments(), state, control)
        return control.should_training_stop


def test_it_stops_when_patience_is_over_and_gives_back_the_best_weights() -> None:
    told = Told([3.0, 2.0, 2.0, 2.5, 1.9, 2.1, 2.2, 2.3], patience=3)
    assert [told.step(number) for number in range(1, 9)] == [False] * 7 + [True]
    assert told.stopping.found.best_step == 5
    told.stopping.keep_best()
    assert told.model.weight.item() == 5
    assert told.stopping.figures()["kept_step"] == 5


def test_it_measures_every_so_often_and_after_the_last_step() -> None:
    told = Told([3.0, 2.0, 1.0], patience=None, every=4)
    for number in range(1, 11):
        assert told.step(number, last=10) is False
    assert told.stopping.figures() == {
        "validation_curve": [
            {"step": 4, "loss": 3.0}, {"step": 8, "loss": 2.0}, {"step": 10, "loss": 1.0},
        ]
    }  # fmt: skip
    told.stopping.keep_best()
    assert told.model.weight.item() == 10


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_training(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"the validation loss became (nan|inf) at step 1: lower train\."):
        Told([loss], patience=None).step(1)


def test_the_first_of_equal_losses_is_the_best() -> None:
    found = Measurements().with_next(1, 2.0).with_next(2, 2.0)
    assert (found.best_step, found.since_best) == (1, 1)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_training_stops_early_and_keeps_what_was_best(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str
) -> None:
    """The same seed stopped at the kept step by its count has the same weights."""
    settings = config(data / "tools.json", method=method, eval_steps=2, patience=2, **OVERSHOOTS)
    out, figures = run(settings, tiny_checkpoint, data, tmp_path / "stopped")
    steps, kept, curve = figures["steps"], figures["kept_step"], figures["validation_curve"]
    assert isinstance(curve, list)
    assert isinstance(kept, int)
    assert steps == kept + 4 < 30
    assert [entry["step"] for entry in curve] == list(range(2, steps + 1, 2))
    best = min(entry["loss"] for entry in curve)
    losses = figures["validation_loss"]
    assert isinstance(losses, dict)
    assert losses["after"] == pytest.approx(best, rel=1e-6)
    assert curve[-1]["loss"] > best
    recorded = json.loads((out / "training.json").read_text())
    assert (recorded["kept_step"], recorded["validation_curve"]) == (kept, curve)

    counted = config(data / "tools.json", method=method, **(OVERSHOOTS | {"max_steps": kept}))
    other, _ = run(counted, tiny_checkpoint, data, tmp_path / "counted")
    assert (out / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_without_patience_the_last_weights_are_kept(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    plain, _ = run(
        config(data / "tools.json", **(OVERSHOOTS | {"max_steps": 9})),
        tiny_checkpoint,
        data,
        tmp_path / "one",
    )
    measured, figures = run(
        config(data / "tools.json", eval_steps=4, **(OVERSHOOTS | {"max_steps": 9})),
        tiny_checkpoint,
        data,
        tmp_path / "two",
    )
    assert (plain / WEIGHTS).read_bytes() == (measured / WEIGHTS).read_bytes()
    assert [entry["step"] for entry in figures["validation_curve"]] == [4, 8, 9]
    assert "kept_step" not in figures


@pytest.mark.parametrize("steps_behind_the_best", [1, 3])
def test_a_restart_knows_the_best_weights_and_the_patience(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, steps_behind_the_best: int
) -> None:
    settings = config(data / "tools.json", eval_steps=2, patience=2, save_steps=1, **OVERSHOOTS)
    whole, figures = run(settings, tiny_checkpoint, data, tmp_path / "whole")
    kill = killed_at(figures["kept_step"] + steps_behind_the_best)
    with pytest.raises(KilledError):
        run(settings, tiny_checkpoint, data, tmp_path / "killed", tmp_path / "work", kill)
    resumed, found = run(settings, tiny_checkpoint, data, tmp_path / "resumed", tmp_path / "work")
    assert found["resumed_from_step"] == figures["kept_step"] + steps_behind_the_best - 1
    assert (whole / WEIGHTS).read_bytes() == (resumed / WEIGHTS).read_bytes()
    assert (whole / "training.json").read_bytes() == (resumed / "training.json").read_bytes()
