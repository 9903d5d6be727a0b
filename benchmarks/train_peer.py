"""The peer of train.py: TRL's SFTTrainer on given token ids, in an interpreter that has trl and datasets.

    python benchmarks/train_peer.py JOB

JOB is a JSON file that train.py writes; the adapter is saved to the folder it names, and the last line that
is printed is JSON: seconds of the training loop, optimizer steps, versions.

Plain SFTTrainer and PEFT LoRA, but for what would make it slower or other than ours: gradient checkpointing,
which trl turns on, is off, and the base is loaded in the type that ours is.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """Time from the first step's begin to the end of training."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_train_begin(self, *unused: Any, **also_unused: Any) -> None:
        """Start."""
        self._started = time.monotonic()

    def on_train_end(self, *unused: Any, **also_unused: Any) -> None:
        """Stop."""
        self.seconds = time.monotonic() - self._started


def main() -> None:
    """Train as the job says."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    bfloat16 = job["dtype"] == "bfloat16"
    clock = Clock()
    steps = math.ceil(len(job["examples"]) / job["batch"]) * job["epochs"]
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            job["base"], dtype=torch.bfloat16 if bfloat16 else torch.float32
        ),
        args=trl.SFTConfig(
            output_dir=job["out"],
            seed=job["seed"],
            use_cpu=not torch.cuda.is_available(),
            bf16=bfloat16,
            per_device_train_batch_size=job["batch"],
            num_train_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            lr_scheduler_type=job["scheduler"],
            warmup_steps=int(steps * job["warmup_share"]),
            adam_beta2=job["adam_beta2"],
            weight_decay=job["weight_decay"],
            max_grad_norm=job["max_grad_norm"],
            gradient_checkpointing=False,
            max_length=None,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_list(job["examples"]),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=job["r"],
            lora_alpha=job["alpha"],
            use_rslora=job["rslora"],
            target_modules=job["target_modules"],
        ),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(job["out"])
    libraries = {module.__name__: module.__version__ for module in (trl, datasets, torch)}
    print()
    print(json.dumps({"seconds": clock.seconds, "steps": trainer.state.global_step, "versions": libraries}))


if __name__ == "__main__":
    main()
