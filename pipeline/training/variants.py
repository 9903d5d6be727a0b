"""The LoRA family: which update stands beside each layer of a base."""

from __future__ import annotations

from typing import Any, cast

from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from pipeline.config import Train
from pipeline.training.adalora import Schedule


def adapted_by(model: PreTrainedModel, settings: Train, schedule: Schedule | None) -> PeftModel:
    """The base with an update beside each targeted layer that changes nothing yet.

    Args:
        model: the base; it becomes part of what is returned, its weights frozen.
        settings: of the training.
        schedule: AdaLoRA's, none for other methods.
    """
    alpha = int(settings.alpha) if settings.alpha.is_integer() else settings.alpha
    targets = settings.target_modules
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "lora_alpha": cast(int, alpha),  # PEFT takes fractions too, whatever its annotation says
        "lora_dropout": settings.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "modules_to_save": list(settings.modules_to_save) or None,
    }
    if schedule is not None:
        update: LoraConfig = AdaLoraConfig(
            **common,
            init_r=settings.initial_rank,
            target_r=settings.r,
            tinit=schedule.warmup,
            tfinal=schedule.settled,
            total_step=schedule.steps,
            deltaT=settings.adalora_delta_t,
            beta1=settings.adalora_beta1,
            beta2=settings.adalora_beta2,
            orth_reg_weight=settings.adalora_orth_reg_weight,
        )
    else:
        update = LoraConfig(
            **common,
            r=settings.r,
            use_rslora=settings.rslora,
            use_dora=settings.method == "dora",
            rank_pattern=dict(settings.rank_pattern),
            alpha_pattern=dict(settings.alpha_pattern),
        )
    found = get_peft_model(model, update)
    if not isinstance(found, PeftModel):
        raise TypeError(f"PEFT made a {type(found).__name__}")
    for name, value in found.named_parameters():
        if ".ranknum." in name:
            # AdaLoRA's divisor is a constant that no file keeps; beside a bfloat16 base PEFT would train it.
            value.requires_grad = False
            value.data = value.data.float()
    return found
