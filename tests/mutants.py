"""Ways to break a pipeline's output, each with the gate that should stop it and the hop it should name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import export.graph
from export.architecture import Architecture
from export.bundle import Description
from export.kv_cache import KvCache
from export.nodes import Nodes
from export.rope import read_rope
from runtime.conversation import Conversation
from runtime.decoder import Decoder

Change = Callable[[Path], None]
"""Changes a folder."""
Patch = Callable[[pytest.MonkeyPatch], None]
"""Changes code."""


@dataclass(frozen=True)
class Mutant:
    """One way to break it.

    Attributes:
        name: what is broken, for a person.
        check: the gate meant for it.
        hop: the hop that is to be named; empty where the damage is none of the model's.
        site: the operator that is to be named, where one alone is broken: layer and site.
        precision: of the bundle.
        calibrated: whether its gate and up round what they read as a whole.
        kv_cache: what its keys and values are kept in; int8 is calibrated, too.
        adapter: changes the adapter that is merged; the reference keeps the true one.
        merged: changes the merged checkpoint.
        exporting: changes how any checkpoint is exported.
        exported_from: changes a copy of the merged checkpoint that only the bundle is exported from.
        exported: changes the exported files.
        packaged: changes what the bundle says of itself.
        running: changes the runtime.
    """

    name: str
    check: str
    hop: str
    site: tuple[int | None, str] | None = None
    precision: str = "int8"
    calibrated: bool = False
    kv_cache: KvCache = "float"
    adapter: Change | None = None
    merged: Change | None = None
    exporting: Patch | None = None
    exported_from: Change | None = None
    exported: Change | None = None
    packaged: Callable[[Description], Description] | None = None
    running: Patch | None = None


def edit_json(file: str, **changes: Any) -> Change:
    """Set keys of a JSON file."""

    def change(folder: Path) -> None:
        table = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**table, **changes}))

    return change


def edit_text(file: str, old: str, new: str) -> Change:
    """Replace a text in a file; it must be there."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def edit_tensors(change: Callable[[dict[str, np.ndarray]], None], file: str = "model.safetensors") -> Change:
    """Change the tensors of a safetensors file."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            folder / file,
            {"format": "pt"},
        )

    return rewrite


def edit_data(tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change one tensor of an exported graph, in its data file."""

    def rewrite(folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        (found,) = [one for one in graph.initializer if one.name == tensor]
        place = {entry.key: entry.value for entry in found.external_data}
        kind = onnx.helper.tensor_dtype_to_np_dtype(found.data_type)
        data = np.memmap(folder / "model.onnx.data", kind, "r+", int(place["offset"]), tuple(found.dims))
        data[:] = change(np.array(data))
        data.flush()

    return rewrite


def edit_inline(tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change one tensor that lies in an exported graph itself."""

    def rewrite(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        (found,) = [one for one in model.graph.initializer if one.name == tensor]
        values = np.ascontiguousarray(change(onnx.numpy_helper.to_array(found)))
        found.CopyFrom(onnx.numpy_helper.from_array(values, tensor))
        onnx.save(model, folder / "model.onnx")

    return rewrite


def edit_nodes(operator: str, attribute: str, value: float) -> Patch:
    """Have every node of a kind written with another attribute."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        add_many = Nodes.add_many

        def changed(
            self: Nodes, kind: str, inputs: Any, outputs: Any, attributes: Any = None, domain: str = ""
        ) -> Any:
            if kind == operator:
                attributes = {**(attributes or {}), attribute: value}
            return add_many(self, kind, inputs, outputs, attributes, domain)

        monkeypatch.setattr(Nodes, "add_many", changed)

    return patch


def edit_architecture(**changes: Any) -> Patch:
    """Have every checkpoint read as another architecture."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = export.graph.read_architecture

        def changed(checkpoint: Path) -> Architecture:
            return dataclasses.replace(read(checkpoint), **changes)

        monkeypatch.setattr(export.graph, "read_architecture", changed)

    return patch


def edit_stacks(name: str, order: tuple[int, ...]) -> Patch:
    """Have the matrices of a fused projection stacked in another order."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        project = export.graph._Decoder._project

        def changed(self: Any, fused: str, sources: list[str], *rest: Any) -> Any:
            if fused.endswith(name):
                sources = [sources[place] for place in order]
            return project(self, fused, sources, *rest)

        monkeypatch.setattr(export.graph._Decoder, "_project", changed)

    return patch


def rope_base(theta: float) -> Patch:
    """Have rotary angles computed from another base than the checkpoint's."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = export.graph.read_architecture

        def changed(checkpoint: Path) -> Architecture:
            architecture = read(checkpoint)
            rope = read_rope({"rope_theta": theta}, architecture.head_dim)
            assert rope != architecture.rope
            return dataclasses.replace(architecture, rope=rope)

        monkeypatch.setattr(export.graph, "read_architecture", changed)

    return patch


def forgotten_division(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = export.graph._Decoder._norm

    def changed(self: Any, residual: Any, update: Any, source: str, name: str, divided_by: Any = None) -> Any:
        return norm(self, residual, update, source, name, None)

    monkeypatch.setattr(export.graph._Decoder, "_norm", changed)


def reversed_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = export.graph.tables
    monkeypatch.setattr(
        export.graph, "tables", lambda rope, context: [table[:, ::-1] for table in tables(rope, context)]
    )


def shifted_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = export.graph.tables

    def changed(rope: Any, context: int) -> Any:
        cos, sin = tables(rope, context)
        # Position 0 as it is, every other one position too far.
        return [np.concatenate([table[:1], table[2:], table[-1:]]) for table in (cos, sin)]

    monkeypatch.setattr(export.graph, "tables", changed)


def rewound_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rewind = Decoder.rewind
    monkeypatch.setattr(
        Decoder, "rewind", lambda self, length: rewind(self, min(self.length, length + 1) if length else 0)
    )


def cache_of_the_token_before(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Decoder.feed

    def changed(self: Decoder, tokens: Any) -> Any:
        logits = feed(self, tokens)
        if self.length > 3:
            for cache in self._buffers.values():
                values = cache.numpy()
                values[:, :, self.length - 1] = values[:, :, self.length - 2]
        return logits

    monkeypatch.setattr(Decoder, "feed", changed)


def mask_one_short(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Decoder.feed

    def changed(self: Decoder, tokens: Any) -> Any:
        logits = feed(self, tokens)
        self._mask[0, 0] = 0
        return logits

    monkeypatch.setattr(Decoder, "feed", changed)


def forgotten_length(monkeypatch: pytest.MonkeyPatch) -> None:
    rewind = Conversation.rewind

    def changed(self: Conversation, length: int) -> None:
        rewind(self, length)
        self.length = max(0, length - 1)

    monkeypatch.setattr(Conversation, "rewind", changed)


def scores_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    score = Decoder.score
    monkeypatch.setattr(Decoder, "score", lambda self, tokens: np.roll(score(self, tokens), 1, axis=0))


def scaled(name: str, rows: slice, columns: slice, factor: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name][rows, columns] *= factor

    return change


def swapped(first: str, second: str) -> Callable[[dict[str, np.ndarray]], None]:
    """Swap the tensors of two modules."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if first in name]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return change


def without_update(part: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        found = [name for name in tensors if part in name and "lora_B" in name]
        assert found
        for name in found:
            tensors[name][:] = 0

    return change


def negated(tensors: dict[str, np.ndarray]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name] *= -1


def stale(tensors: dict[str, np.ndarray]) -> None:
    random = np.random.default_rng(3)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor += random.normal(0, 0.05 * tensor.std(), tensor.shape).astype(tensor.dtype)


def untied_head(folder: Path) -> None:
    """A head of its own, every row one token too far."""
    edit_json("config.json", tie_word_embeddings=False)(folder)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = np.roll(tensors["model.embed_tokens.weight"], 1, axis=0)

    edit_tensors(change)(folder)


def other_base(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        random = np.random.default_rng(5)
        for name, tensor in tensors.items():
            if name.endswith("proj.weight"):
                tensor += random.normal(0, 0.02 * tensor.std(), tensor.shape).astype(tensor.dtype)

    edit_tensors(change)(folder)


def values_scaled_as_keys(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (node, *_) = [one for one in model.graph.node if one.op_type == "GroupQueryAttention"]
    node.input[13] = node.input[12]
    onnx.save(model, folder / "model.onnx")


def other_tokenizer(folder: Path) -> None:
    """Two tokens have each other's number."""
    table = json.loads((folder / "tokenizer.json").read_text())
    words = table["model"]["vocab"]
    first, second = [word for word in words if word in ("1", "2")]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(table))


ROUNDED = "weights_only"
ADAPTER = "adapter_model.safetensors"
KEYS = "layers.0.attention.keys"
DOWN = "model.layers.1.mlp.down_proj.weight"

MUTANTS: tuple[Mutant, ...] = (
    # merge
    Mutant("the LoRA scale is off by alpha / r", "max_hop_error", "merged", (0, "attention.qkv"),
           adapter=edit_json("adapter_config.json", lora_alpha=4)),
    Mutant("the scale is rsLoRA's", "max_hop_error", "merged", (0, "attention.qkv"),
           adapter=edit_json("adapter_config.json", use_rslora=True)),
    Mutant("the update is subtracted", "max_hop_error", "merged", (0, "attention.qkv"),
           adapter=edit_tensors(negated, ADAPTER)),
    Mutant("one layer is left unmerged", "max_hop_error", "merged", (1, "attention.qkv"),
           adapter=edit_tensors(without_update("layers.1."), ADAPTER)),
    Mutant("one projection is left unmerged", "max_hop_error", "merged", (1, "mlp.output"),
           adapter=edit_tensors(without_update("layers.1.mlp.down_proj"), ADAPTER)),
    Mutant("nothing is merged", "max_hop_error", "merged", (0, "attention.qkv"),
           adapter=edit_tensors(without_update("lora_B"), ADAPTER)),
    Mutant("the adapter is that of an earlier training", "max_hop_error", "merged", (0, "attention.qkv"),
           adapter=edit_tensors(stale, ADAPTER)),
    Mutant("the adapter is merged into another base", "max_hop_error", "merged", (0, "attention.qkv"),
           merged=other_base),
    Mutant("one block of a merged weight is scaled by 1.1", "max_hop_error", "merged", (1, "mlp.output"),
           merged=edit_tensors(scaled(DOWN, slice(0, 32), slice(0, 32), 1.1))),
    Mutant("the merged layers are in another order", "max_hop_error", "merged", (0, "attention.qkv"),
           merged=edit_tensors(swapped("layers.0.", "layers.1."))),
    # export
    Mutant("the rotary base is wrong", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=rope_base(1e6)),
    Mutant("rotary frequencies are in reverse", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=reversed_frequencies),
    Mutant("positions are shifted by one", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=shifted_positions),
    Mutant("rotary halves are interleaved", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=edit_nodes("GroupQueryAttention", "rotary_interleaved", 1)),
    Mutant("attention sees a window only", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=edit_nodes("GroupQueryAttention", "local_window_size", 8)),
    Mutant("attention scores have another scale", "max_hop_error", "onnx", (0, "attention.mixed"),
           exporting=edit_nodes("GroupQueryAttention", "scale", 0.2)),
    Mutant("the norms' epsilon is wrong", "max_hop_error", "onnx", (0, "attention.input"),
           exporting=edit_architecture(norm_epsilon=1e-2)),
    Mutant("queries and keys are swapped", "max_hop_error", "onnx", (0, "attention.qkv"),
           exporting=edit_stacks("qkv_proj", (1, 0, 2))),
    Mutant("gate and up are swapped", "max_hop_error", "onnx", (0, "mlp.gate_up"),
           exporting=edit_stacks("gate_up_proj", (1, 0))),
    Mutant("the activation function is another", "max_hop_error", "onnx", (0, "mlp.product"),
           exporting=edit_nodes("QuickGelu", "alpha", 1.702)),
    # rounding
    Mutant("scales of an int8 matrix are permuted", "max_weights_kl", ROUNDED,
           exported=edit_data(f"{DOWN}.scales", lambda scales: scales[::-1])),
    Mutant("zero points of an int8 matrix are off by one", "max_weights_kl", ROUNDED, (1, "mlp.output"),
           exported=edit_data(DOWN, lambda packed: packed + np.uint8(1))),
    Mutant("activations are not smoothed, only their weights", "max_weights_kl", ROUNDED,
           (0, "mlp.gate_up"), calibrated=True, exporting=forgotten_division),
    Mutant("scales of a calibrated matrix are permuted", "max_weights_kl", ROUNDED, calibrated=True,
           exported=edit_data("model.layers.1.mlp.gate_up_proj.weight.scales", lambda scales: scales[::-1])),
    Mutant("the bundle's layers are in another order", "max_weights_kl", ROUNDED, (0, "attention.qkv"),
           exported_from=edit_tensors(swapped("layers.0.", "layers.1."))),
    Mutant("the head is untied, and shifted", "max_weights_kl", ROUNDED, (None, "logits"),
           exported_from=untied_head),
    Mutant("the bundle is of another merge", "max_weights_kl", ROUNDED,
           exported_from=other_base),
    Mutant("int4 halves of bytes are swapped", "max_weights_kl", ROUNDED, precision="int4",
           exported=edit_data(DOWN, lambda packed: packed >> 4 | packed << 4)),
    Mutant("scales of cached keys are permuted", "max_activations_kl", "shipped",
           calibrated=True, kv_cache="int8",
           exported=edit_inline(f"{KEYS}.scales", lambda scales: scales[..., ::-1])),
    Mutant("scales of cached keys are a thousandth", "max_activations_kl", "shipped", (0, "attention.mixed"),
           calibrated=True, kv_cache="int8",
           exported=edit_inline(f"{KEYS}.scales", lambda scales: scales / 1000)),
    Mutant("cached values have the scales of keys", "max_activations_kl", "shipped",
           calibrated=True, kv_cache="int8", exported=values_scaled_as_keys),
    Mutant("one block of a float bundle is scaled by 1.1", "max_hop_error", "shipped", (1, "mlp.output"),
           precision="fp32",
           exported_from=edit_tensors(scaled(DOWN, slice(0, 32), slice(0, 32), 1.1))),
    # runtime
    Mutant("rewinding keeps one token too many", "max_float_cache_error", "", running=rewound_too_little),
    Mutant("positions are shifted after a rewind", "max_float_cache_error", "", running=forgotten_length),
    Mutant("the cache is off by one", "max_float_cache_error", "", running=cache_of_the_token_before),
    Mutant("the mask forgets the first token", "max_float_cache_error", "", running=mask_one_short),
    Mutant("logits are of the position before", "max_hop_error", "bundle", running=scores_shifted),
    # what the device is asked
    Mutant("the system prompt is another", "rendering", "",
           packaged=lambda description: dataclasses.replace(
               description, system="Turn the request into function calls of the vehicle.")),
    Mutant("the tokenizer is another", "rendering", "", exported=other_tokenizer),
    Mutant("a special token is dropped from the template", "rendering", "",
           exported=edit_text("chat_template.jinja", "'<|im_end|>' + ", "")),
    Mutant("the template has a newline more", "rendering", "",
           exported=edit_text("chat_template.jinja", "assistant\n", "assistant\n\n")),
)  # fmt: skip


def copied(source: Path, target: Path, change: Change | None) -> Path:
    """The folder itself, or a changed copy."""
    if change is None:
        return source
    shutil.copytree(source, target)
    change(target)
    return target
