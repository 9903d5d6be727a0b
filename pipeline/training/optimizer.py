"""What a step does with a gradient."""

from __future__ import annotations

import torch
from peft import PeftModel

from pipeline.config import Train


def adamw(model: PeftModel, settings: Train) -> torch.optim.AdamW:
    """AdamW over what is trained; with LoRA+ (arXiv 2402.12354) B learns faster than the rest."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    rate = settings.learning_rate
    groups = [
        {"params": [weight for name, weight in trained if ".lora_B." not in name], "lr": rate},
        {
            "params": [weight for name, weight in trained if ".lora_B." in name],
            "lr": rate * settings.loraplus_ratio,
        },
    ]
    betas = (0.9, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=settings.weight_decay, fused=True)
