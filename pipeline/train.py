"""Base + data → a LoRA adapter, by PEFT through Hugging Face Trainer and accelerate.

`accelerate launch` runs it on several processes unchanged.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from pipeline.adapter import CONFIG
from pipeline.config import Config
from pipeline.data.packing import Row, pack
from pipeline.data.records import read_records
from pipeline.data.render import Example, render, supervised_share
from pipeline.fingerprint import FINGERPRINT, fingerprint
from pipeline.provenance import versions
from pipeline.quiet import quiet_transformers
from pipeline.stage import Progress, artifact
from pipeline.training.adalora import RankAllocation, orthogonality_penalty, schedule
from pipeline.training.batches import Rows, collate, mean_loss
from pipeline.training.best import EarlyStopping
from pipeline.training.frozen import digests, refuse_changed_base
from pipeline.training.loading import load_base
from pipeline.training.lora import fused_lora
from pipeline.training.optimizer import adamw
from pipeline.training.precision import Precision, choose_precision
from pipeline.training.record import TRAINING
from pipeline.training.resume import claim, newest_complete
from pipeline.training.targets import refuse_wrong_targets
from pipeline.training.variants import adapted_by
from pipeline.training.watch import Watch
from runtime.calls import load_tools

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers")


@dataclass(frozen=True)
class _Split:
    """Examples of one split, packed."""

    examples: Sequence[Example]
    rows: Sequence[Row]

    @property
    def tokens(self) -> int:
        """Tokens that the model is fed in one epoch."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def supervised(self) -> int:
        """Tokens that the loss is on in one epoch."""
        return sum(len(row.targets) for row in self.rows)


def train(
    config: Config, base: Path, data: Path, out: Path, work: Path, progress: Progress
) -> dict[str, object]:
    """Train a LoRA adapter; where `work` holds whole checkpoints of the same training, go on from the newest.

    Args:
        config: its `train`, `data.system`, `base` and `seed` are read.
        base: a checkpoint directory.
        data: a directory with `train.jsonl`, `validation.jsonl` and `tools.json`.
        out: an empty directory; becomes a PEFT adapter with `training.json` (the same for the same seed
            on the same machine) and the base's fingerprint.
        work: for checkpoints.
        progress: told of every step.

    Returns:
        What `training.json` says, and what differs from run to run: time, speed, peak memory.

    Raises:
        ConfigError: `train` names layers that the base has not, has too few steps for AdaLoRA, asks for 4-bit
            weights where there are none, or `work` holds checkpoints of another training.
        CheckpointError: the base cannot be loaded.
        DataError: a record is malformed or longer than the base's context.
        TrainingError: loss or gradient became NaN or infinite, or a weight of the base changed.
    """
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.train.threads or threads)
    try:
        with quiet_transformers():
            figures = _train(config, base, data, out, work, progress)
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        torch.cuda.empty_cache()
    return {**figures, "seconds": round(time.monotonic() - started, 1), "peak_memory_mb": _peak_memory_mb()}


def _train(
    config: Config, base: Path, data: Path, out: Path, work: Path, progress: Progress
) -> dict[str, object]:
    progress("preparing training", 0, 0)
    settings = config.train
    precision = choose_precision("float32" if settings.modules_to_save else settings.dtype)
    # Left to itself, accelerate sees one process where several share no GPU.
    processes = PartialState(cpu=precision.device == "cpu")
    main, count = processes.is_main_process, processes.num_processes
    rows_per_step = settings.gradient_accumulation * count
    set_seed(config.seed)
    four_bit = settings.method == "qlora"
    model = load_base(base, precision, four_bit=four_bit)
    refuse_wrong_targets(settings, model)
    train_split, validation = _splits(config, base, data, model.config.max_position_embeddings)
    total_steps = settings.max_steps or math.ceil(
        math.ceil(len(train_split.rows) / rows_per_step) * settings.epochs
    )
    rank_schedule = schedule(settings, total_steps)
    weights = dict(model.named_parameters())
    adapted = adapted_by(model, settings, rank_schedule)
    trainable, total = adapted.get_nb_trainable_parameters()
    if main:
        claim(
            work,
            {
                "train": settings.model_dump(mode="json"),
                "seed": config.seed,
                "data.system": config.data.system,
                "base": artifact(base).digest,
                "data": artifact(data).digest,
                "precision": {"device": precision.device, "dtype": str(precision.dtype)},
                "processes": count,
                "libraries": dict(versions((*_LIBRARIES, "bitsandbytes") if four_bit else _LIBRARIES)),
            },
        )
    processes.wait_for_everyone()

    def validate() -> float:
        return mean_loss(adapted, validation.rows, precision.device)

    allocation = RankAllocation(adapted) if rank_schedule else None
    stopping = None
    if settings.eval_steps is not None:
        stopping = EarlyStopping(adapted, validate, settings.eval_steps, settings.patience)
    extras = [extra for extra in (allocation, stopping) if extra is not None]
    watch = Watch(
        progress, (lambda: orthogonality_penalty(adapted) / rows_per_step) if rank_schedule else None
    )
    trainer = Trainer(
        model=adapted,
        args=_arguments(config, work, precision, total_steps),
        train_dataset=Rows(train_split.rows, rows_per_step),
        data_collator=collate,
        compute_loss_func=watch.loss,
        # Whoever adds to a checkpoint comes before the one who marks it whole.
        callbacks=[*extras, watch],
        optimizers=(adamw(adapted, settings), None),
    )
    trainer.remove_callback(PrinterCallback)
    untouched = digests(weights, adapted)
    with fused_lora(adapted):
        progress("validating the base", 0, 0)
        loss_before = validate()
        checkpoint = newest_complete(work)
        if checkpoint is not None:
            for extra in extras:
                extra.restore(checkpoint)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        steps, seconds = watch.steps, watch.seconds
        if stopping is not None:
            stopping.keep_best()
        progress("validating the adapter", 0, 0)
        loss_after = validate()
    refuse_changed_base(untouched, digests(weights, adapted))
    processes.wait_for_everyone()  # what one process refuses, none writes

    figures: dict[str, object] = {
        "method": settings.method,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "system": config.data.system,
        "examples": len(train_split.examples),
        "rows": len(train_split.rows),
        "tokens": train_split.tokens,
        "supervised_tokens": train_split.supervised,
        "supervised_share": round(supervised_share(train_split.examples), 4),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "dtype": str(precision.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if precision.device == "cuda" else "cpu",
        "processes": count,
        "validation_loss": {"before": loss_before, "after": loss_after},
        "curve": _curve(trainer.state.log_history),
    }
    for extra in extras:
        figures |= extra.figures()
    if main:
        _save(adapted, config, base, out)
        (out / TRAINING).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    rows = steps * rows_per_step
    speed = rows / len(train_split.rows) / seconds
    return {
        **figures,
        "resumed_from_step": trainer.state.global_step - steps,
        "tokens_per_second": round(train_split.tokens * speed, 1),
        "examples_per_second": round(len(train_split.examples) * speed, 2),
        "training_seconds": round(seconds, 1),
    }


def _splits(config: Config, base: Path, data: Path, context: int) -> tuple[_Split, _Split]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tools = load_tools(data / "tools.json")

    def split(name: str) -> _Split:
        records = read_records(data / f"{name}.jsonl")
        examples = [render(record, tokenizer, tools, config.data.system) for record in records]
        rows = pack(examples, length=config.train.tokens_per_step, context=context, seed=config.seed)
        return _Split(examples, rows)

    return split("train"), split("validation")


def _arguments(config: Config, work: Path, precision: Precision, steps: int) -> TrainingArguments:
    settings = config.train
    arguments = TrainingArguments(
        output_dir=str(work),
        seed=config.seed,
        use_cpu=precision.device == "cpu",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=int(steps * settings.warmup_share),
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        # The other way has no gradient where a layer's input has none, as behind a frozen embedding.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_steps=settings.save_steps,
        # The one before stays until the next is marked whole.
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=precision.device == "cuda",
        disable_tqdm=True,
        report_to="none",
    )
    # One process drives one GPU: Trainer would split a row's tensors over all it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    keys = ("step", "loss", "grad_norm", "learning_rate")
    return [{key: entry[key] for key in keys} for entry in history if "loss" in entry]


def _save(model: PeftModel, config: Config, base: Path, out: Path) -> None:
    """A PEFT folder that says the same wherever it was made."""
    model.save_pretrained(str(out), save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # a model card with the base's path on this machine
    fields = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    if isinstance(fields["target_modules"], list):
        fields["target_modules"] = sorted(fields["target_modules"])
    fields["base_model_name_or_path"] = config.base.id or config.base.package or config.name
    fields["revision"] = config.base.revision
    (out / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fingerprint(base).write(out / FINGERPRINT)


def _peak_memory_mb() -> int:
    """Highest memory of this process, or of the GPU when it was used."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
