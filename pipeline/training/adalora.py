"""AdaLoRA (arXiv 2303.10512): updates B E A, whose diagonal E loses what matters least, step by step.

PEFT scores and masks; here is what a training loop owes it: the schedule, the penalty that keeps A and B
orthogonal, an allocation after every step, and a state that survives a restart.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.config import Train
from runtime.errors import ConfigError

STATE = "allocator.safetensors"
"""The file of a checkpoint that has the scores and the ranks so far."""

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_ADAPTER = "default"


@dataclass(frozen=True)
class Schedule:
    """When ranks fall: after `warmup` steps, until `settled` steps before the last.

    Attributes:
        steps: of the whole training.
        warmup: steps with the initial rank everywhere.
        settled: steps with the final ranks.
    """

    steps: int
    warmup: int
    settled: int


def schedule(settings: Train, steps: int) -> Schedule | None:
    """AdaLoRA's schedule over a training's optimizer steps; none for other methods.

    Raises:
        ConfigError: there are too few for ranks to be allocated at least once before they are settled.
    """
    if settings.method != "adalora":
        return None
    if not _enough(settings, steps):
        needed = next(more for more in itertools.count(steps + 1) if _enough(settings, more))
        raise ConfigError(
            f'train.method = "adalora" with this train.adalora_tinit, adalora_tfinal and adalora_delta_t '
            f"needs {needed} steps, and there are {steps}: raise train.max_steps or train.epochs"
        )
    return _split(settings, steps)


def _split(settings: Train, steps: int) -> Schedule:
    return Schedule(steps, int(steps * settings.adalora_tinit), int(steps * settings.adalora_tfinal))


def _enough(settings: Train, steps: int) -> bool:
    found = _split(settings, steps)
    return steps - found.warmup - found.settled > settings.adalora_delta_t


class RankAllocation(TrainerCallback):
    """Has PEFT score and mask after every optimizer step, while gradients are still there.

    PEFT's config holds no rank pattern meanwhile: with one, a checkpoint would keep the unmasked part of
    factors alone, and loading it would put new parameters beside those that the optimizer knows.
    """

    def __init__(self, model: PeftModel) -> None:
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config[_ADAPTER]
        self._allocator: Any = self._tuner.rankallocator
        self._pattern: dict[str, list[bool]] | None = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Steps are counted from 1, so that `warmup` steps pass before ranks fall."""
        self._config.rank_pattern = self._pattern
        self._tuner.update_and_allocate(state.global_step + 1)
        self._pattern, self._config.rank_pattern = self._config.rank_pattern, None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Write scores and ranks into the checkpoint."""
        if not state.is_world_process_zero:
            return
        tensors = {
            f"{average}/{name}": tensor.contiguous()
            for average in _AVERAGES
            for name, tensor in getattr(self._allocator, average).items()
        }
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        save_file(tensors, folder / STATE, {"rank_pattern": json.dumps(self._pattern)})

    def restore(self, checkpoint: Path) -> None:
        """Go on from what `on_save` wrote."""
        device = str(next(self._tuner.parameters()).device)
        with safe_open(checkpoint / STATE, "pt", device=device) as file:
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                average, _, name = key.partition("/")
                getattr(self._allocator, average)[name] = file.get_tensor(key)
            self._pattern = json.loads(file.metadata()["rank_pattern"])

    def figures(self) -> dict[str, object]:
        """Tell PEFT's config the final ranks, for the adapter to be saved by.

        Returns:
            What training.json says of them: layer → rank, and rank → number of layers.
        """
        if self._pattern is None:
            raise RuntimeError("AdaLoRA's ranks were never allocated")
        self._config.rank_pattern = self._pattern
        ranks = {name.partition(".lora_E")[0]: sum(kept) for name, kept in sorted(self._pattern.items())}
        layers = {str(rank): count for rank, count in sorted(Counter(ranks.values()).items())}
        return {"ranks": ranks, "layers_of_rank": layers}


def orthogonality_penalty(model: PeftModel) -> torch.Tensor:
    """γ · mean over factors of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ (Frobenius), the paper's R(P, Q) as PEFT weighs it.

    PEFT adds it only where the model computes its own loss.
    """
    norms = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = factor @ factor.T if ".lora_A." in name else factor.T @ factor
            norms.append(torch.linalg.norm(square - torch.eye(len(square), device=square.device)))
    settings: Any = model.peft_config[_ADAPTER]
    penalty: torch.Tensor = settings.orth_reg_weight * torch.stack(norms).mean()
    return penalty
