"""What a config may target: names, patterns, all linear layers; what it names by mistake is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config import Train
from pipeline.quiet import quiet_transformers
from pipeline.training.targets import refuse_wrong_targets
from runtime.errors import ConfigError
from tests.tiny_training import config, run, write_data

MLP = ("up", "gate", "down")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_tools_file: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), tiny_tools_file)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> PreTrainedModel:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(tiny_checkpoint)


def layers(adapter: Path) -> set[str]:
    names = load_file(adapter / WEIGHTS)
    return {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("layers.1.mlp.up_proj",), {"model.layers.1.mlp.up_proj"}),
        (
            r"model\.layers\.\d+\.self_attn\.[qv]_proj",
            {f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"},
        ),
        (
            "all-linear",
            {f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkvo"}
            | {
                f"model.layers.{layer}.mlp.{name}_proj" for layer in (0, 1) for name in ("up", "gate", "down")
            },
        ),
    ],
)
def test_targets_are_names_a_pattern_or_all_linear_layers(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, targets: object, wanted: set[str]
) -> None:
    settings = config(data / "tools.json", target_modules=targets, max_steps=1)
    out, _ = run(settings, tiny_checkpoint, data, tmp_path)
    assert layers(out) == wanted


def test_patterns_give_layers_their_own_rank_and_alpha(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(
        data / "tools.json",
        rank_pattern={"q_proj": 2, r"layers\.0\.mlp\..*": 6},
        alpha_pattern={"layers.1.self_attn.v_proj": 3.0},
        max_steps=1,
    )
    out, _ = run(settings, tiny_checkpoint, data, tmp_path)
    ranks = {name: len(factor) for name, factor in load_file(out / WEIGHTS).items() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "layers.0.mlp" in name} == {6}
    assert {rank for name, rank in ranks.items() if "layers.1.mlp" in name} == {4}
    with quiet_transformers():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), out)
    layer = model.base_model.model.model.layers[1].self_attn
    assert (layer.v_proj.scaling["default"], layer.k_proj.scaling["default"]) == (0.75, 2.0)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (
            {"target_modules": ("q_proj", "k_porj")},
            ['train.target_modules: no layer of the base is called "k_porj"; did you mean "k_proj"?'],
        ),
        (
            {"target_modules": r".*\.attn\.q_proj"},
            [
                r'train.target_modules: the pattern ".*\.attn\.q_proj" matches no layer'
                "'s whole name; the base has \"model.layers."
            ],
        ),
        (
            {"target_modules": r".*layers\.0.*"},
            ['the pattern ".*layers\\.0.*" also matches "model.layers.0", which is no linear layer'],
        ),
        (
            {"target_modules": ("q_proj", "lm_head", "norm", "embed_tokens", "bias_", "mlp")},
            [
                'train.target_modules: "lm_head" is "lm_head", which is no linear layer of a block; norms, '
                "the embedding and the head are trained whole, with train.modules_to_save",
                '"norm" is "model.norm", which',
                '"embed_tokens" is "model.embed_tokens", which',
                'no layer of the base is called "bias_"',
                '"mlp" is "model.layers.0.mlp", which',
            ],
        ),
        ({"target_modules": "lm_head"}, ['the pattern "lm_head" also matches "lm_head", which']),
        (
            {"target_modules": ("q_proj", "v_proj"), "rank_pattern": {"k_proj": 2, "q_porj": 1}},
            [
                'train.rank_pattern: "k_proj" matches none of the targeted layers; did you mean "v_proj"?',
                'train.rank_pattern: "q_porj" matches none of the targeted layers; did you mean "q_proj"?',
            ],
        ),
        (
            {"alpha_pattern": {"layers.7.q_proj": 2.0}},
            ['train.alpha_pattern: "layers.7.q_proj" matches none of the targeted layers'],
        ),
        (
            {"modules_to_save": ("lm_haed", "norm", "q_proj", "mlp")},
            [
                'train.modules_to_save: no layer of the base is called "lm_haed"; did you mean "lm_head"?',
                'train.modules_to_save: "norm" is also the end of "model.layers.0.input_layernorm", which '
                'would be trained too; name it in full: "model.norm"',
                '"model.layers.0.self_attn.q_proj" is also a train.target_modules',
                'no layer of the base is called "mlp"',
            ],
        ),
    ],
)
def test_what_is_named_by_mistake_is_refused_all_at_once(
    model: PreTrainedModel, settings: dict[str, object], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_wrong_targets(Train.model_validate(settings), model)
    for message in messages:
        assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == len(messages)


def test_a_bias_is_no_target() -> None:
    class Biased(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(2, 2)

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ConfigError, match=r'"bias" is "q_proj\.bias", which is no linear layer'):
        refuse_wrong_targets(Train(target_modules=("bias",)), Biased())


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("whole", [("lm_head",), ("embed_tokens",), ("model.norm", "input_layernorm")])
def test_what_is_trained_whole_on_purpose_is_in_the_adapter_and_the_base_stays(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, whole: tuple[str, ...], method: str
) -> None:
    settings = config(data / "tools.json", method=method, modules_to_save=whole, max_steps=6, dtype="auto")
    out, figures = run(settings, tiny_checkpoint, data, tmp_path)
    assert figures["dtype"] == "float32"
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == list(whole)
    saved = {name for name in load_file(out / WEIGHTS) if "lora_" not in name}
    assert len(saved) == (3 if len(whole) == 2 else 1)
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation="packed")
        weights = dict(base.named_parameters())
        model = PeftModel.from_pretrained(base, out)
    losses = figures["validation_loss"]
    assert isinstance(losses, dict)
    from tests.test_train_methods import validation_loss

    assert validation_loss(model, data) == pytest.approx(losses["after"], rel=1e-5)
    trained = load_file(out / WEIGHTS)
    for name in saved:
        short = name.removeprefix("base_model.model.")
        original = weights.get(short, weights["model.embed_tokens.weight"])
        assert not torch.equal(torch.from_numpy(trained[name]), original)


def test_a_training_of_whole_modules_resumes(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    from tests.tiny_training import KilledError, killed_at

    settings = config(data / "tools.json", modules_to_save=("lm_head", "model.norm"), max_steps=6)
    whole, _ = run(settings, tiny_checkpoint, data, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings, tiny_checkpoint, data, tmp_path / "killed", tmp_path / "work", killed_at(5))
    resumed, _ = run(settings, tiny_checkpoint, data, tmp_path / "resumed", tmp_path / "work")
    assert (whole / WEIGHTS).read_bytes() == (resumed / WEIGHTS).read_bytes()
