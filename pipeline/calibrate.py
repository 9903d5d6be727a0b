"""Checkpoint + conversations → a calibration: how loud what gate and up read is, and keys and values are.

`export.calibration` describes the folder, and reads it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from export.calibration import ACTIVATIONS
from pipeline.data.records import Record, read_records
from pipeline.data.render import render
from pipeline.quiet import quiet_transformers
from pipeline.stage import Progress
from runtime.calls import load_tools
from runtime.errors import CheckpointError, DataError

FEWEST_CONVERSATIONS = 8
"""Different ones; fewer would calibrate for a handful of sentences."""


def calibrate(
    checkpoint: Path, data: Sequence[Path], system: str, conversations: int, out: Path, progress: Progress
) -> Mapping[str, Any]:
    """Run a checkpoint over training conversations and note what gate and up read and what caches hold.

    Args:
        checkpoint: a merged checkpoint of a Llama-shaped decoder, or a base that several tasks share.
        data: folders with `train.jsonl` and the same `tools.json`, one for each task.
        system: the system prompt.
        conversations: how many of the training splits to run, from their beginnings in turn.
        out: an empty directory.
        progress: told of every conversation.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, has no gate and up, or gives no finite numbers.
        DataError: too few different conversations, or a malformed record.
    """
    records = first_records(data, conversations)
    model = _load(checkpoint)
    loudest = _watch(model)
    tokens = 0
    for done, ids in enumerate(_rendered(checkpoint, data[0], records, system), start=1):
        with torch.inference_mode():
            # By place, since transformers names the cache differently from version to version.
            _, cache = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1, return_dict=False)
        _note_cache(cache.layers, loudest)
        tokens += len(ids)
        progress("calibrating", done, len(records))
    if broken := [name for name, values in loudest.items() if not values.isfinite().all()]:
        raise CheckpointError(f"{checkpoint} gives NaN or infinite numbers, first in {broken[0]}")
    save_file({name: values.numpy() for name, values in loudest.items()}, out / ACTIVATIONS)
    return {"conversations": len(records), "tokens": tokens}


def first_records(data: Sequence[Path], conversations: int) -> list[Record]:
    """Training records to calibrate on, one of each folder after the other.

    Raises:
        DataError: too few different ones, or a malformed record.
    """
    records = _in_turn(data)[:conversations]
    different = len({record.utterance for record in records})
    if different < FEWEST_CONVERSATIONS:
        files = ", ".join(str(folder / "train.jsonl") for folder in data)
        raise DataError(
            f"the first {conversations} records of {files} are {different} different ones, "
            f"and calibration needs {FEWEST_CONVERSATIONS}; give it more, "
            "or set export.calibration_conversations = 0 to round in blocks everywhere"
        )
    return records


def _in_turn(data: Sequence[Path]) -> list[Record]:
    """Training records, one of each folder after the other."""
    turns = itertools.zip_longest(*(read_records(folder / "train.jsonl") for folder in data))
    return [record for turn in turns for record in turn if record is not None]


def _load(checkpoint: Path) -> PreTrainedModel:
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {checkpoint}: {error}") from error
    model.train(False)
    return model


def _watch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Of each layer the largest magnitudes (hidden,) that its gate projection reads, as the model is run."""
    modules = dict(model.named_modules())
    loudest: dict[str, torch.Tensor] = {}

    def watch(layer: int, gate: torch.nn.Module) -> None:
        name = f"layers.{layer}.mlp.input"
        loudest[name] = torch.zeros(int(model.config.hidden_size))

        def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            loudest[name] = torch.maximum(loudest[name], args[0][0].abs().amax(dim=0))

        gate.register_forward_pre_hook(note)

    for layer in range(int(model.config.num_hidden_layers)):
        gate = modules.get(f"model.layers.{layer}.mlp.gate_proj")
        if gate is None:
            raise CheckpointError(f"layer {layer} of this checkpoint has no gate projection to calibrate")
        watch(layer, gate)
    return loudest


def _note_cache(layers: Sequence[Any], loudest: dict[str, torch.Tensor]) -> None:
    """Raise the largest magnitudes (kv_heads * head_dim,) of each layer's keys and values."""
    for number, layer in enumerate(layers):
        for part, rows in (("keys", layer.keys), ("values", layer.values)):
            name, found = f"layers.{number}.{part}", rows[0].abs().amax(dim=1).flatten()
            loudest[name] = torch.maximum(loudest.get(name, found), found)


def _rendered(checkpoint: Path, data: Path, records: Sequence[Record], system: str) -> list[list[int]]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tools = load_tools(data / "tools.json")
    examples = [render(record, tokenizer, tools, system) for record in records]
    return [[*example.prompt, *example.answer] for example in examples]
