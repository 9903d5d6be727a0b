"""A tiny random model with a real tokenizer and chat template, made once for the whole run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.calls import Tool, load_tools

if TYPE_CHECKING:
    from export.bundle import Description

CONTEXT = 256

SENTENCES = (
    "set the driver side to 22 degrees",
    "open the rear left window half way",
    "play something by the Beatles and turn the volume up",
    "把空调调到二十二度，打开车窗",
    "take me to the nearest charging station, please",
    '[{"name":"climate_set_temperature","arguments":{"zone":"driver","celsius":22.5}}]',
    '[{"name":"window_set_position","arguments":{"window":"rear_left","percent":50}}]',
    "Turn the request into vehicle function calls.",
    "system user assistant",
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TOOLS = [
    {
        "name": "climate_set_temperature",
        "description": "Set the cabin temperature",
        "parameters": {
            "type": "object",
            "properties": {
                "zone": {"type": "string", "enum": ["driver", "passenger", "all"]},
                "celsius": {"type": "number", "minimum": 16, "maximum": 30, "multipleOf": 0.5},
            },
            "required": ["celsius"],
            "additionalProperties": False,
        },
    },
    {
        "name": "window_set_position",
        "description": "Open or close a window",
        "parameters": {
            "type": "object",
            "properties": {
                "window": {"type": "string", "enum": ["driver", "rear_left", "all"]},
                "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            },
            "required": ["window", "percent"],
            "additionalProperties": False,
        },
    },
    {
        "name": "media_play",
        "description": "Play a song or an artist",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "minLength": 1, "maxLength": 12},
                "artist": {"type": "string", "minLength": 1, "maxLength": 12},
            },
            "required": [],
            "additionalProperties": False,
        },
    },
    {
        "name": "light_set_hazard",
        "description": "Switch the hazard lights",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with tied embeddings as a standard Hugging Face checkpoint folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Larger than usual, so that logits are far enough apart to tell a wrong graph from a right one.
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tools_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small tools as a tools.json."""
    path = tmp_path_factory.mktemp("tiny_tools") / "tools.json"
    path.write_text(json.dumps(TOOLS, indent=1) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tools(tiny_tools_file: Path) -> tuple[Tool, ...]:
    """The same four tools, read."""
    return load_tools(tiny_tools_file)


@pytest.fixture(scope="session")
def tiny_exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a float32 graph with its tokenizer, as an export stage leaves it."""
    from export.checkpoint import export_checkpoint

    folder = tmp_path_factory.mktemp("tiny_exported")
    export_checkpoint(tiny_checkpoint, folder, "fp32", 32, CONTEXT, lambda what, done, total: None)
    return folder


@pytest.fixture(scope="session")
def tiny_growing(tiny_exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as other exporters write it: position_ids, and logits of every position.

    Our graph also takes a past as long as the tokens before it; its head is put behind hidden_states.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    folder = tmp_path_factory.mktemp("grown")
    model = onnx.load(tiny_exported / "model.onnx", load_external_data=False)
    head = compose.add_prefix(onnx.load(tiny_exported / "head.onnx", load_external_data=False), "head_")
    last = next(output for output in model.graph.output if output.name == "logits")
    for node in model.graph.node:
        node.output[:] = ["last_logits" if name == "logits" else name for name in node.output]
    vocabulary = last.type.tensor_type.shape.dim[2].dim_value
    model.graph.output.remove(last)
    for node in head.graph.node:
        node.input[:] = ["hidden_states" if n == head.graph.input[0].name else n for n in node.input]
        node.output[:] = ["logits" if n == head.graph.output[0].name else n for n in node.output]
    model.graph.node.extend(head.graph.node)
    model.graph.initializer.extend(head.graph.initializer)
    model.graph.output.append(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, vocabulary])
    )
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, [1, None]))
    onnx.save(model, folder / "model.onnx")
    for name in (
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        shutil.copyfile(tiny_exported / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_description() -> Description:
    """What the tiny bundle says of itself."""
    from export.bundle import Description
    from runtime.manifest import Lineage

    return Description(
        name="tiny",
        precision="fp32",
        exporter="graph",
        lineage=Lineage("0" * 64, None, None, {"train": {"r": 2}}, {"onnx": "1.23"}),
        system="Turn the request into vehicle function calls.",
        form="json",
    )


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_exported: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A candidate bundle of the tiny checkpoint. Shared: copy it before changing it."""
    from export.bundle import package

    out = tmp_path_factory.mktemp("tiny_bundle") / "bundle"
    package(tiny_exported, out, tiny_tools_file, tiny_description)
    return out
