"""Eyes on a running training: the loss stays finite, progress is told, checkpoints are marked whole."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.stage import Progress
from pipeline.training.batches import summed_loss
from pipeline.training.resume import mark_complete
from runtime.errors import TrainingError

ADVICE = "lower train.learning_rate, or train in float32 with train.dtype"
"""What to do about a loss or a gradient that is not finite."""


class Watch(TrainerCallback):
    """Loss function and callback of one training, since both look at the same loss."""

    def __init__(self, progress: Progress, penalty: Callable[[], torch.Tensor] | None = None) -> None:
        """`penalty`: what every row of a step adds to the likelihood's part of the loss."""
        self._progress = progress
        self._penalty = penalty
        self._step = 0
        self._first_step = 0
        self._started = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps made by this process, those before a resume not counted."""
        return self._step - self._first_step

    @property
    def seconds(self) -> float:
        """Time since the first of them began, measurements of the validation loss included."""
        return time.monotonic() - self._started

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """Mean over all supervised tokens of the optimizer step that this row is part of, and the penalty.

        Raises:
            TrainingError: it is NaN or infinite.
        """
        loss = summed_loss(outputs.logits, labels) / num_items_in_batch
        if self._penalty is not None:
            loss = loss + self._penalty()
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss became {loss.item()} at step {self._step + 1}: {ADVICE}")
        return loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Note where a resumed training starts."""
        self._step = self._first_step = state.global_step
        self._started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """After the last step no checkpoint is made: Trainer would go on from it with one step too many."""
        if control.should_training_stop:
            control.should_save = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **unused: Any,
    ) -> None:
        """After every optimizer step.

        Raises:
            TrainingError: the gradient is NaN or infinite.
        """
        if logs is None or "loss" not in logs:
            return
        self._step = state.global_step
        if not math.isfinite(logs["grad_norm"]):
            raise TrainingError(f"the gradient became {logs['grad_norm']} at step {self._step}: {ADVICE}")
        left = self.seconds / self.steps * (state.max_steps - self._step)
        message = f"training, loss {logs['loss']:.3f}, {_duration(left)} left"
        self._progress(message, self._step, state.max_steps)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """A checkpoint is written, to which every process adds the state of its random numbers."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
