"""Adapters that PEFT can make, field by field, and what the merge is to do with each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.quiet import quiet_transformers

Base = Literal["llama", "llama, tied", "llama, biases", "qwen2", "qwen3", "mistral"]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QKV = ["q_proj", "k_proj", "v_proj"]


@dataclass(frozen=True)
class Case:
    """One value of one field.

    Attributes:
        field: of LoraConfig or AdaLoraConfig.
        value: as the page shows it.
        settings: what PEFT is asked for.
        base: the model it is asked for on.
        adalora: whether it is AdaLoRA.
        written: fields put into adapter_config.json afterwards, where PEFT cannot make such an adapter
            here (it needs data, another model or another package).
        refused: the field that a refusal names; empty when the adapter is merged.
    """

    field: str
    value: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: Base = "llama"
    adalora: bool = False
    written: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""

    @property
    def name(self) -> str:
        """For a test's id."""
        return f"{self.field}={self.value} on {self.base}{' (AdaLoRA)' if self.adalora else ''}"


def _refused(field: str, value: Any, **more: Any) -> Case:
    shown = json.dumps(value)
    return Case(field, shown if len(shown) < 40 else "set", written={field: value, **more}, refused=field)


EMBEDDINGS = ["embed_tokens", "lm_head"]
KEPT = {
    f"model.layers.{layer}.{module}.lora_E": kept
    for layer in range(2)
    for module, kept in (
        ("self_attn.q_proj", [True, False, True]),
        ("self_attn.v_proj", [True, True, True]),
        ("mlp.down_proj", [False, False, False]),
    )
}
ADALORA = {"init_r": 3, "total_step": 10, "target_modules": ["q_proj", "v_proj", "down_proj"]}

CASES = (
    Case("r", "1", {"r": 1}),
    Case("r", "4", base="llama, tied"),
    Case("r", "4", base="qwen2"),
    Case("r", "4", base="qwen3"),
    Case("r", "4", base="mistral"),
    Case("lora_alpha", "3", {"lora_alpha": 3}),
    Case("target_modules", "list", {"target_modules": ["q_proj", "mlp.up_proj"]}),
    Case("target_modules", "pattern", {"target_modules": r".*\.1\.self_attn\.(k|o)_proj"}),
    Case("target_modules", "all-linear", {"target_modules": "all-linear"}, "qwen2"),
    Case("target_modules", "head", {"target_modules": ["lm_head"]}),
    Case("target_modules", "head", {"target_modules": ["lm_head", "q_proj"]}, "llama, tied"),
    Case("target_modules", "embedding", {"target_modules": ["embed_tokens"]}),
    Case("target_modules", "embedding", {"target_modules": ["embed_tokens", "q_proj"]}, "llama, tied"),
    Case("target_modules", "embedding and head", {"target_modules": EMBEDDINGS}),
    Case("target_modules", "embedding and head", {"target_modules": EMBEDDINGS}, "llama, tied"),
    Case("exclude_modules", "list", {"exclude_modules": ["up_proj"]}),
    Case("exclude_modules", "pattern", {"exclude_modules": r".*\.0\..*"}),
    Case("layers_to_transform", "[1]", {"layers_to_transform": [1]}),
    Case("layers_to_transform", "0", {"layers_to_transform": 0}),
    Case("layers_pattern", "layers", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    Case("use_rslora", "true", {"use_rslora": True}),
    Case("rank_pattern", "by name", {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}}),
    Case("alpha_pattern", "by name", {"alpha_pattern": {r"layers\.1\..*": 3, "down_proj": 20}}),
    Case("alpha_pattern", "with rsLoRA", {"alpha_pattern": {"q_proj": 3}, "use_rslora": True}),
    Case("use_dora", "true", {"use_dora": True}),
    Case("use_dora", "true", {"use_dora": True}, "qwen2"),
    Case(
        "use_dora",
        "with rsLoRA and patterns",
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    ),
    Case("use_dora", "embedding and head", {"use_dora": True, "target_modules": EMBEDDINGS}),
    Case("use_dora", "embedding", {"use_dora": True, "target_modules": ["embed_tokens"]}, "llama, tied"),
    Case("use_dora", "head", {"use_dora": True, "target_modules": ["lm_head"]}, "llama, tied"),
    Case("bias", "all", {"bias": "all"}),
    Case("bias", "all", {"bias": "all", "target_modules": ["q_proj", "up_proj"]}, "qwen2"),
    Case("bias", "lora_only", {"bias": "lora_only"}),
    Case("bias", "lora_only", {"bias": "lora_only", "target_modules": ["q_proj", "up_proj"]}, "qwen2"),
    Case("bias", "all, with DoRA", {"bias": "all", "use_dora": True}, "qwen2"),
    Case("lora_bias", "true: attention_bias and mlp_bias are set", {"lora_bias": True}),
    Case("lora_bias", "true: the bias is there", {"lora_bias": True}, "llama, biases"),
    Case(
        "lora_bias", "true: attention_bias is set", {"lora_bias": True, "target_modules": ["o_proj"]}, "qwen3"
    ),
    Case("lora_bias", "true", {"lora_bias": True}, "mistral", refused="lora_bias"),
    Case("lora_bias", "true: the bias is there", {"lora_bias": True, "target_modules": QKV}, "qwen2"),
    Case("lora_bias", "with bias all", {"lora_bias": True, "bias": "all", "target_modules": QKV}, "qwen2"),
    Case(
        "lora_bias",
        "true: on o_proj",
        {"lora_bias": True, "target_modules": ["o_proj"]},
        "qwen2",
        refused="lora_bias",
    ),
    Case(
        "lora_bias",
        "true: on the head",
        {"lora_bias": True, "target_modules": ["lm_head"]},
        refused="lora_bias",
    ),
    Case("modules_to_save", "head", {"modules_to_save": ["lm_head"]}),
    Case("modules_to_save", "head", {"modules_to_save": ["lm_head"]}, "llama, tied"),
    Case("modules_to_save", "embedding", {"modules_to_save": ["embed_tokens"]}),
    Case("modules_to_save", "embedding", {"modules_to_save": ["embed_tokens"]}, "llama, tied"),
    Case("modules_to_save", "embedding and head", {"modules_to_save": EMBEDDINGS}, "llama, tied"),
    Case("modules_to_save", "norm (and whatever ends so)", {"modules_to_save": ["norm"]}),
    Case("modules_to_save", "mlp", {"modules_to_save": ["mlp"], "target_modules": SEVEN}),
    Case("modules_to_save", "projections with biases", {"modules_to_save": ["v_proj"]}, "qwen2"),
    Case("fan_in_fan_out", "true: PEFT sets it back", {"fan_in_fan_out": True}),
    Case("fan_in_fan_out", "true", written={"fan_in_fan_out": True}),
    Case("init_lora_weights", "false", {"init_lora_weights": False}),
    Case("init_lora_weights", "gaussian", {"init_lora_weights": "gaussian"}),
    Case("init_lora_weights", "orthogonal", {"init_lora_weights": "orthogonal"}),
    Case("init_lora_weights", "mica", {"init_lora_weights": "mica"}),
    Case("init_lora_weights", "eva", written={"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
    *(
        _refused("init_lora_weights", way)
        for way in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
    ),
    Case("init_r", "3", ADALORA, adalora=True),
    Case(
        "init_r",
        "3, on the head",
        {**ADALORA, "target_modules": ["q_proj", "lm_head"]},
        "llama, tied",
        adalora=True,
    ),
    Case("rank_pattern", "ranks pruned, to none", {**ADALORA, "rank_pattern": KEPT}, adalora=True),
    Case("use_rslora", "true: PEFT ignores it", {**ADALORA, "use_rslora": True}, adalora=True),
    Case("alpha_pattern", "PEFT ignores it", {**ADALORA, "alpha_pattern": {"q_proj": 3}}, adalora=True),
    Case("bias", "all", {**ADALORA, "bias": "all"}, "qwen2", adalora=True),
    Case("modules_to_save", "head", {**ADALORA, "modules_to_save": ["lm_head"]}, "llama, tied", adalora=True),
    _refused("ensure_weight_tying", True),
    _refused("trainable_token_indices", [1, 2]),
    _refused("target_parameters", ["mlp.down_proj.weight"]),
    _refused("layer_replication", [[0, 2], [1, 2]]),
    _refused("megatron_config", {"tensor_model_parallel_size": 1}),
    _refused("loftq_config", {"loftq_bits": 4}),
    _refused("corda_config", {"corda_method": "ipm"}),
    _refused("lora_ga_config", {"direction": "ArB2r"}),
    _refused("velora_config", {"num_groups": 4}),
    _refused("alora_invocation_tokens", [5]),
    _refused("use_qalora", True),
    _refused("monteclora_config", {"num_samples": 8}),
    _refused("use_bdlora", {"nblocks": 2}),
    _refused("arrow_config", {"top_k": 3}),
    _refused("kasa_config", {"beta": 0.1}),
)


def make_base(base: Base, folder: Path) -> Path:
    """A tiny random model whose biases, where it has them, are not zero."""
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "tie_word_embeddings": base == "llama, tied",
    }
    torch.manual_seed(1)
    model: PreTrainedModel
    match base:
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**shape))
        case _:
            biased = base == "llama, biases"
            model = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=biased, mlp_bias=biased))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    with quiet_transformers():
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_adapter(case: Case, base: Path, folder: Path, seed: int = 2) -> Path:
    """An adapter as PEFT saves it, every trained value of which is random."""
    values: dict[str, Any] = {"lora_alpha": 8, "target_modules": SEVEN, **case.settings}
    kind = AdaLoraConfig if case.adalora else LoraConfig
    if not case.adalora:
        values.setdefault("r", 4)
    torch.manual_seed(seed)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of much of what is tried here
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(model, kind(task_type="CAUSAL_LM", **values))
        for name, parameter in adapted.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data *= 0.5 + torch.rand(parameter.shape)
            elif "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(case.written)))
    return folder
