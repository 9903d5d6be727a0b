"""Validation loss on the way, and stopping when it no longer falls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.training.watch import ADVICE
from runtime.errors import TrainingError

STATE = "validation.safetensors"
"""The file of a checkpoint that has the validation losses so far and the best weights."""


@dataclass(frozen=True)
class Measurements:
    """Validation losses on the way.

    Attributes:
        curve: (optimizer step, loss in nats per supervised token), oldest first.
        best_step: the step with the lowest loss, the first where several have it.
        best_loss: its loss.
        since_best: measurements since then.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    since_best: int = 0

    def with_next(self, step: int, loss: float) -> Measurements:
        """These and one more."""
        curve = [*self.curve, (step, loss)]
        if loss < self.best_loss:
            return Measurements(curve, step, loss)
        return replace(self, curve=curve, since_best=self.since_best + 1)


class EarlyStopping(TrainerCallback):
    """Measures every `eval_steps` steps and after the last; with patience, stops and keeps the best weights.

    Rank 0's loss counts for all ranks, so that they stop together.
    """

    def __init__(
        self, model: torch.nn.Module, validate: Callable[[], float], eval_steps: int, patience: int | None
    ) -> None:
        self._model = model
        self._validate = validate
        self._every = eval_steps
        self._patience = patience
        self._best: dict[str, torch.Tensor] = {}
        self.found = Measurements()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Measure when it is time.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        step = state.global_step
        if step % self._every and step < state.max_steps:
            return
        (loss,) = broadcast_object_list([self._validate()])
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss became {loss} at step {step}: {ADVICE}")
        self.found = self.found.with_next(step, loss)
        if self._patience is None:
            return
        if self.found.best_step == step:
            self._best = {name: weight.detach().clone() for name, weight in self._trained().items()}
        if self.found.since_best >= self._patience:
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Write the losses and the best weights into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            save_file(self._best, folder / STATE, {"measurements": json.dumps(asdict(self.found))})

    def restore(self, checkpoint: Path) -> None:
        """Go on from what `on_save` wrote."""
        with safe_open(checkpoint / STATE, "pt") as file:
            self._best = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = json.loads(file.metadata()["measurements"])
        said["curve"] = [(step, loss) for step, loss in said["curve"]]
        self.found = Measurements(**said)

    def figures(self) -> dict[str, object]:
        """What training.json says of it."""
        curve = [{"step": step, "loss": loss} for step, loss in self.found.curve]
        return {"validation_curve": curve} | ({"kept_step": self.found.best_step} if self._patience else {})

    def keep_best(self) -> None:
        """Give the model the weights of the best measurement; without patience, leave it as it is."""
        trained = self._trained()
        with torch.no_grad():
            for name, weight in self._best.items():
                trained[name].copy_(weight)

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
