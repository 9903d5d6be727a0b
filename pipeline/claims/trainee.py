"""A base that learns from packed rows, a step at a time: all of its weights, or LoRA's factors alone.

Both ways share loop, rows, attention, loss and optimizer, so that what differs between them is what is
trained. Full fine-tuning keeps its weights in float32 and multiplies in the precision that LoRA has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from pipeline.data.packing import Row
from pipeline.quiet import quiet_transformers
from pipeline.training.attention import PACKED
from pipeline.training.batches import collate, summed_loss
from pipeline.training.lora import fused_lora
from pipeline.training.precision import Precision, choose_precision
from runtime.errors import CheckpointError


@dataclass(frozen=True)
class Lora:
    """LoRA as the guide describes it.

    Attributes:
        r: rank.
        scale: s of W0 + s · B A.
        targets: names of the layers, or their ends.
    """

    r: int
    scale: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """How a base is trained.

    Attributes:
        base: the checkpoint.
        lora: None trains every weight.
        adam_beta2: memory of the squared gradient.
        weight_decay: of AdamW.
        max_grad_norm: longer gradients are shortened to it.
        dtype: see `pipeline.config.Train`.
        threads: CPU threads.
    """

    base: str
    lora: Lora | None
    adam_beta2: float
    weight_decay: float
    max_grad_norm: float
    dtype: Literal["auto", "float32", "bfloat16"]
    threads: int


@dataclass(frozen=True)
class Losses:
    """Of each conversation, in the order of the rows: negative log likelihood in nats, and tokens of it."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return sum(self.nats) / sum(self.tokens)


@dataclass(frozen=True)
class Kept:
    """Bytes that training keeps beside weights and activations.

    Attributes:
        trained: parameters that learn.
        gradients: of those.
        moments: AdamW's, of those.
        frozen_gradients: of everything else.
    """

    trained: int
    gradients: int
    moments: int
    frozen_gradients: int


class Trainee:
    """A model and its optimizer; see `trainee`."""

    def __init__(self, model: torch.nn.Module, way: Way, precision: Precision) -> None:
        self._model, self._way, self._precision = model, way, precision
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        betas = (0.9, way.adam_beta2)
        self._optimizer = torch.optim.AdamW(
            self._learning, betas=betas, weight_decay=way.weight_decay, fused=True
        )

    def step(self, row: Row, learning_rate: float) -> None:
        """One optimizer step on one row; the gradients stay until the next."""
        self._optimizer.zero_grad()
        batch = {name: tensor.to(self._precision.device) for name, tensor in collate([row]).items()}
        labels = batch.pop("labels")
        with self._products():
            logits = self._model(**batch, use_cache=False).logits
        (summed_loss(logits, labels) / len(row.targets)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._learning, self._way.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def losses(self, rows: Sequence[Row]) -> Losses | None:
        """Of every conversation of the rows; None where training has run off to NaN or infinity."""
        with self._products():
            found = conversation_losses(self._model, rows, self._precision.device)
        return found if all(map(math.isfinite, found.nats)) else None

    def save(self, folder: Path) -> None:
        """Write a checkpoint of a model whose every weight learns, or the adapter of one with LoRA."""
        cast(PreTrainedModel, self._model).save_pretrained(folder)

    def kept(self) -> Kept:
        """What is in memory after a step."""
        frozen = [parameter for parameter in self._model.parameters() if not parameter.requires_grad]
        moments = [
            moment for state in self._optimizer.state.values() for moment in state.values() if moment.dim()
        ]
        return Kept(
            trained=sum(parameter.numel() for parameter in self._learning),
            gradients=_bytes([parameter.grad for parameter in self._learning]),
            moments=_bytes(moments),
            frozen_gradients=_bytes([parameter.grad for parameter in frozen]),
        )

    def _products(self) -> AbstractContextManager[object]:
        """LoRA's base is held in the type of its products; weights that learn are rounded for each."""
        mixed = self._way.lora is None and self._precision.dtype is torch.bfloat16
        return torch.autocast(self._precision.device, torch.bfloat16) if mixed else nullcontext()


@contextmanager
def trainee(way: Way) -> Iterator[Trainee]:
    """A fresh base, ready for its first step.

    Raises:
        CheckpointError: the base cannot be loaded.
    """
    torch.set_num_threads(way.threads)
    set_seed(0)
    precision = choose_precision(way.dtype)
    with quiet_transformers():
        if way.lora is None:
            whole: torch.nn.Module = load(Path(way.base), torch.float32)
            yield Trainee(whole.to(precision.device).train(), way, precision)
            return
        model = with_lora(load(Path(way.base), precision.dtype), way.lora).to(precision.device).train()
        with fused_lora(model):
            yield Trainee(model, way, precision)


def load(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint that takes packed rows.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, attn_implementation=PACKED, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load {base}: {error}") from error
    return model


def with_lora(model: PreTrainedModel, lora: Lora) -> torch.nn.Module:
    """The base with factors beside each target: B zero, A random; nothing else learns."""
    adapted: torch.nn.Module = get_peft_model(model, lora_config(lora))
    return adapted


def lora_config(lora: Lora) -> LoraConfig:
    """The same for PEFT, whose scale is alpha / r."""
    alpha = cast(int, lora.scale * lora.r)  # PEFT takes fractions too, whatever its annotation says
    return LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=alpha, target_modules=list(lora.targets))


@torch.no_grad()
def conversation_losses(model: torch.nn.Module, rows: Sequence[Row], device: str) -> Losses:
    """Negative log likelihood of every conversation's answer."""
    nats: list[float] = []
    tokens: list[int] = []
    for row in rows:
        batch = {name: tensor.to(device) for name, tensor in collate([row]).items()}
        targets = batch.pop("labels")[0, 1:]
        each = cross_entropy(model(**batch, use_cache=False).logits[0].float(), targets, reduction="none")
        owner = torch.tensor(row.segments)[list(row.predictors)]
        for conversation in range(1, max(row.segments) + 1):
            own = each[owner.to(device) == conversation]
            nats.append(own.sum().item())
            tokens.append(len(own))
    return Losses(tuple(nats), tuple(tokens))


def _bytes(tensors: Sequence[torch.Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
