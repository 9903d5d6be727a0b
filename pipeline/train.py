"""Base + data → a LoRA adapter, by PEFT through Hugging Face Trainer and accelerate.

`accelerate launch` runs it on several processes unchanged.
"""

from __future__ import annotations

import difflib
import gc
import hashlib
import json
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
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
from pipeline.provenance import json_digest, versions
from pipeline.quiet import quiet_transformers
from pipeline.stage import Progress, artifact
from pipeline.training.attention import PACKED
from pipeline.training.batches import Rows, collate, mean_loss
from pipeline.training.lora import fused_lora
from pipeline.training.precision import Precision, choose_precision
from pipeline.training.record import TRAINING
from pipeline.training.resume import claim, newest_complete
from pipeline.training.watch import Watch
from runtime.calls import load_tools
from runtime.errors import CheckpointError, ConfigError, TrainingError

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
        ConfigError: `train.target_modules` names no layer of the base.
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
    precision = choose_precision(config.train.dtype)
    # Left to itself, accelerate sees one process where several share no GPU.
    processes = PartialState(cpu=precision.device == "cpu")
    main, count = processes.is_main_process, processes.num_processes
    rows_per_step = config.train.gradient_accumulation * count
    set_seed(config.seed)
    model = _load(base, precision)
    _refuse_unmatched_targets(config.train.target_modules, model)
    train_split, validation = _splits(config, base, data, model.config.max_position_embeddings)
    adapted = _adapted(model, config)
    trainable, total = adapted.get_nb_trainable_parameters()
    key = json_digest(
        {
            "train": config.train.model_dump(mode="json"),
            "seed": config.seed,
            "system": config.data.system,
            "base": artifact(base).digest,
            "data": artifact(data).digest,
            "precision": str(precision),
            "libraries": dict(versions(_LIBRARIES)),
        }
    )
    if main:
        claim(work, key)
    processes.wait_for_everyone()

    watch = Watch(progress)
    trainer = Trainer(
        model=adapted,
        args=_arguments(config, work, precision, math.ceil(len(train_split.rows) / rows_per_step)),
        train_dataset=Rows(train_split.rows, rows_per_step),
        data_collator=collate,
        compute_loss_func=watch.loss,
        callbacks=[watch],
        optimizers=(_optimizer(adapted, config), None),
    )
    trainer.remove_callback(PrinterCallback)
    untouched = _digests(adapted)
    with fused_lora(adapted):
        progress("validating the base", 0, 0)
        loss_before = mean_loss(adapted, validation.rows, precision.device)
        checkpoint = newest_complete(work)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        steps, seconds = watch.steps, watch.seconds
        progress("validating the adapter", 0, 0)
        loss_after = mean_loss(adapted, validation.rows, precision.device)
    _refuse_changed_base(untouched, _digests(adapted))
    processes.wait_for_everyone()  # what one process refuses, none writes

    figures: dict[str, object] = {
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


def _load(base: Path, precision: Precision) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=precision.dtype,
            attn_implementation=PACKED,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load {base}: {error}") from error
    model.config.use_cache = False
    return model


def _refuse_unmatched_targets(targets: Sequence[str], model: torch.nn.Module) -> None:
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    endings = sorted({name.rpartition(".")[2] for name in layers})
    problems = []
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            near = difflib.get_close_matches(target, endings, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"the base has {', '.join(endings)}"
            problems.append(f'train.target_modules: no layer of the base is called "{target}"; {hint}')
    if problems:
        raise ConfigError("\n".join(problems))


def _splits(config: Config, base: Path, data: Path, context: int) -> tuple[_Split, _Split]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tools = load_tools(data / "tools.json")

    def split(name: str) -> _Split:
        records = read_records(data / f"{name}.jsonl")
        examples = [render(record, tokenizer, tools, config.data.system) for record in records]
        rows = pack(examples, length=config.train.tokens_per_step, context=context, seed=config.seed)
        return _Split(examples, rows)

    return split("train"), split("validation")


def _adapted(model: PreTrainedModel, config: Config) -> PeftModel:
    """The base with factors of an update beside each targeted layer: B zero, A random."""
    settings = config.train
    alpha = int(settings.alpha) if settings.alpha.is_integer() else settings.alpha
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=cast(int, alpha),  # PEFT takes fractions too, whatever its annotation says
        use_rslora=settings.rslora,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    adapted = get_peft_model(model, lora)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"PEFT made a {type(adapted).__name__}")
    return adapted


def _optimizer(model: PeftModel, config: Config) -> torch.optim.AdamW:
    """AdamW over the factors; with LoRA+ (arXiv 2402.12354) B learns faster than A."""
    settings = config.train
    factors = [(name, factor) for name, factor in model.named_parameters() if factor.requires_grad]
    rate = settings.learning_rate
    groups = [
        {"params": [factor for name, factor in factors if ".lora_B." not in name], "lr": rate},
        {
            "params": [factor for name, factor in factors if ".lora_B." in name],
            "lr": rate * settings.loraplus_ratio,
        },
    ]
    betas = (0.9, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=settings.weight_decay, fused=True)


def _arguments(config: Config, work: Path, precision: Precision, per_epoch: int) -> TrainingArguments:
    settings = config.train
    steps = settings.max_steps or math.ceil(per_epoch * settings.epochs)
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


def _digests(model: torch.nn.Module) -> dict[str, str]:
    """sha256 of every weight of the base, as it is in memory."""
    return {
        name.replace("base_model.model.", "", 1).replace(".base_layer.", "."): hashlib.sha256(
            parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data
        ).hexdigest()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


def _refuse_changed_base(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        raise TrainingError(
            f"training changed {len(changed)} of {len(before)} weights of the base, such as "
            f'"{min(changed)}"; no adapter is written, since only its base would fit it'
        )


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    keys = ("step", "loss", "grad_norm", "learning_rate")
    return [{key: entry[key] for key in keys} for entry in history if "loss" in entry]


def _save(model: PeftModel, config: Config, base: Path, out: Path) -> None:
    """A PEFT folder that says the same wherever it was made."""
    model.save_pretrained(str(out), save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # a model card with the base's path on this machine
    fields = json.loads((out / CONFIG).read_text(encoding="utf-8"))
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
