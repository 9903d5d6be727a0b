"""The graph against transformers, family by family, on tiny random models."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from test_quantize import dequantize
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import export.graph as export_graph
from export.calibration import ACTIVATIONS, Calibration
from export.external_data import ExternalData
from export.graph import Precision, write_graph
from export.matrix import FloatMatrix, FloatTable, store_matrix, store_table, whole_block
from export.quantize import quantize_blocks, quantize_channels
from export.smoothing import smoothing
from export.weights import Checkpoint
from pipeline.evidence.onnx_model import float_activations, write_variant
from runtime.errors import CheckpointError, ExportError

CONTEXT = 64
TOKENS = np.random.default_rng(3).integers(0, 99, 40)

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "attn_implementation": "eager",
}


def rope(kind: str, **values: float | bool) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama untied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "llama, a key-value head per head": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE | {"num_key_value_heads": 4})
    ),
    "llama biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "llama head_dim": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=48)),
    "llama3 rope": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **rope("llama3", **LLAMA3))),
    "linear rope": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **rope("linear", factor=4.0))),
    "yarn rope": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **rope("yarn", **YARN))),
    "yarn rope, attention factor": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, **rope("yarn", **YARN, attention_factor=0.7, truncate=False))
    ),
    "yarn rope, mscale": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE, **rope("yarn", **YARN, beta_fast=8.0, beta_slow=2.0, mscale=0.9, mscale_all_dim=0.5)
        )
    ),
    "qwen2 tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2 windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    ),
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True)),
    "qwen3 biases": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32, attention_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "mistral window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
}


def randomized(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model in which norms and biases matter too."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


@torch.inference_mode()
def reference(model: PreTrainedModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits at every position, [S, V]."""
    return model(torch.from_numpy(tokens)[None]).logits[0].float().numpy()


def export(
    model: PreTrainedModel,
    folder: Path,
    precision: Precision,
    block_size: int = 32,
    calibration: Calibration | None = None,
) -> Path:
    checkpoint, out = folder / "checkpoint", folder / "out"
    model.save_pretrained(checkpoint)
    out.mkdir()
    write_graph(checkpoint, out, precision, block_size, CONTEXT, ignore, calibration)
    return out


def ignore(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class Loop:
    """The smallest loop around the graph: a cache in place, and a mask of fixed or of growing length."""

    session: onnxruntime.InferenceSession
    padded: bool = False
    length: int = 0

    def __post_init__(self) -> None:
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.cache = {
            value.name.removeprefix("past_key_values."): onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, value.shape[1], CONTEXT, value.shape[3]), types[value.type])
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }

    def feed(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
        """Logits [V] after the last token, and hidden states [S, H]."""
        self.length += len(tokens)
        mask = np.zeros((1, CONTEXT if self.padded else self.length), np.int64)
        mask[:, : self.length] = 1
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", tokens[None])
        binding.bind_cpu_input("attention_mask", mask)
        for name in ("logits", "hidden_states"):
            binding.bind_output(name, "cpu")
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        self.session.run_with_iobinding(binding)
        logits, hidden = binding.copy_outputs_to_cpu()[:2]
        assert logits.shape[:2] == (1, 1)
        return logits[0, 0], hidden[0]


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_chunks(loop: Loop, sizes: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Position and logits after each chunk of TOKENS."""
    assert sum(sizes) == len(TOKENS)
    for size in sizes:
        logits, _ = loop.feed(TOKENS[loop.length : loop.length + size])
        yield loop.length - 1, logits


def error(measured: NDArray[np.generic], expected: NDArray[np.float32]) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(measured - expected).max() / np.abs(expected).max())


CHUNKINGS = ((40,), (1,) * 40, (7, 1, 13, 19))


@pytest.mark.parametrize("family", FAMILIES)
def test_float_graph_is_the_model(family: str, tmp_path: Path) -> None:
    """Prefill, token by token and chunk by chunk, growing and fixed masks; and the scoring head."""
    model = randomized(FAMILIES[family])
    expected = reference(model, TOKENS)
    out = export(model, tmp_path, "fp32")
    session, head = open_graph(out / "model.onnx"), open_graph(out / "head.onnx")
    for padded in (False, True):
        for sizes in CHUNKINGS:
            for position, logits in in_chunks(Loop(session, padded), sizes):
                assert error(logits, expected[position]) < 1e-5, (padded, sizes, position)
    _, hidden = Loop(session).feed(TOKENS)
    (scores,) = head.run(None, {"hidden_states": hidden[None]})
    assert error(scores[0], expected) < 1e-5


def test_a_cache_that_grows_gives_the_same(tmp_path: Path) -> None:
    """Past and present as separate tensors, the past as long as the tokens before."""
    model = randomized(FAMILIES["qwen3 tied"])
    expected = reference(model, TOKENS)
    session = open_graph(export(model, tmp_path, "fp32") / "model.onnx")
    cache = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    names = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    at = 0
    for size in (7, 1, 1, 31):
        ids, mask = TOKENS[None, at : at + size], np.ones((1, at + size), np.int64)
        logits, *presents = session.run(names, {"input_ids": ids, "attention_mask": mask, **cache})
        cache = dict(zip(cache, presents, strict=True))
        at += size
        assert error(logits[0, 0], expected[at - 1]) < 1e-5


def test_several_prompts_at_once(tmp_path: Path) -> None:
    """A batch of prompts of different lengths, padded on the right, then one token each."""
    model = randomized(FAMILIES["llama tied"])
    session = open_graph(export(model, tmp_path, "fp32") / "model.onnx")
    names = [value.name for value in session.get_inputs() if value.name.startswith("past")]
    cache = {name: np.zeros((2, 2, CONTEXT, 16), np.float32) for name in names}
    ids = np.stack([TOKENS[:12], np.pad(TOKENS[20:28], (0, 4))])
    mask = np.array([[1] * 12, [1] * 8 + [0] * 4])
    inputs = {"input_ids": ids, "attention_mask": mask, **cache}
    outputs = [f"present{name.removeprefix('past_key_values')}" for name in names]
    presents = session.run(outputs, inputs)
    ids, mask = TOKENS[[12, 28]][:, None], np.array([[1] * 13, [1] * 9 + [0] * 4])
    inputs = {"input_ids": ids, "attention_mask": mask, **dict(zip(names, presents, strict=True))}
    (logits,) = session.run(["logits"], inputs)
    for row, tokens in enumerate((TOKENS[:13], TOKENS[20:29])):
        assert error(logits[row, 0], reference(model, tokens)[-1]) < 1e-5


def test_half_precision_is_close(tmp_path: Path) -> None:
    model = randomized(FAMILIES["qwen2 tied"])
    expected = reference(model, TOKENS)
    session = open_graph(export(model, tmp_path, "fp16") / "model.onnx")
    for position, logits in in_chunks(Loop(session), CHUNKINGS[2]):
        assert logits.dtype == np.float32
        assert error(logits, expected[position]) < 0.02


def at_level(level: int, path: Path) -> Path:
    """The same graph with another accuracy level: 0 multiplies in float32, 4 with int8 activations."""
    model = onnx.load(path, load_external_data=False)
    changed = 0
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                assert attribute.i == 4
                attribute.i = level
                changed += 1
    assert changed
    other = path.with_name(f"level{level}.{path.name}")
    onnx.save(model, other)
    return other


def round_weights(model: PreTrainedModel, precision: Precision, block_size: int) -> None:
    """Replace the weights by what their rounded form stands for."""
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                bits = 8 if precision == "int8" or name in tables else 4
                weight = parameter.numpy()
                size = whole_block(weight.shape[1], block_size)
                blocks = quantize_blocks(weight, bits, size, symmetric=bits == 8)
                parameter.copy_(torch.from_numpy(dequantize(blocks, weight.shape[1], bits)))


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("family", ["llama tied", "llama untied", "qwen2 tied", "qwen3 tied"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_graph_is_the_model_with_rounded_weights(
    precision: Precision, family: str, block_size: int, tmp_path: Path
) -> None:
    """With float32 products to 1e-4; with int8 activations, as shipped, to a few percent."""
    model = randomized(FAMILIES[family])
    out = export(model, tmp_path, precision, block_size)
    round_weights(model, precision, block_size)
    expected = reference(model, TOKENS)
    exact = open_graph(at_level(0, out / "model.onnx"))
    for sizes in CHUNKINGS[:2]:
        for position, logits in in_chunks(Loop(exact), sizes):
            assert error(logits, expected[position]) < 1e-4
    _, hidden = Loop(exact).feed(TOKENS)
    head = open_graph(at_level(0, out / "head.onnx"))
    assert error(head.run(None, {"hidden_states": hidden[None]})[0][0], expected) < 1e-4
    for position, logits in in_chunks(Loop(open_graph(out / "model.onnx")), CHUNKINGS[2]):
        assert error(logits, expected[position]) < 0.1


@pytest.mark.parametrize(
    ("columns", "block_size", "found"),
    [(576, 128, 64), (1536, 128, 128), (576, 32, 32), (1536, 64, 64), (48, 128, 16), (50, 128, 16)],
)
def test_a_block_divides_a_row_where_one_can(columns: int, block_size: int, found: int) -> None:
    assert whole_block(columns, block_size) == found


def test_both_graphs_read_the_same_bytes(tmp_path: Path) -> None:
    """Each external tensor of head.onnx is one of model.onnx: same file, same place, on a page of its own."""
    out = export(randomized(FAMILIES["llama tied"]), tmp_path, "int4")
    places = []
    for name in ("model.onnx", "head.onnx"):
        model = onnx.load(out / name, load_external_data=False)
        entries = [
            {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        ]
        assert {entry["location"] for entry in entries} == {"model.onnx.data"}
        assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
        places.append({(entry["offset"], entry["length"]) for entry in entries})
    assert places[1]
    assert places[1] < places[0]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_scales_take_two_bytes_and_are_widened_when_the_graph_is_opened(
    precision: Precision, tmp_path: Path
) -> None:
    out = export(randomized(FAMILIES["llama tied"]), tmp_path, precision)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    scales = {tensor.name: tensor.data_type for tensor in graph.initializer if "scales" in tensor.name}
    assert len(scales) == 4 * 3 + 1
    assert set(scales.values()) == {onnx.TensorProto.FLOAT16}
    assert scales.keys() <= {name for node in graph.node if node.op_type == "Cast" for name in node.input}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    opened = onnx.load(tmp_path / "opened.onnx", load_external_data=False).graph
    assert not scales.keys() & {name for node in opened.node for name in node.input}


def test_a_layer_with_an_outlier_stays_in_blocks(tmp_path: Path) -> None:
    loudest = {f"layers.{layer}.mlp.input": torch.ones(64) for layer in range(3)}
    loudest["layers.1.mlp.input"][5] = 1e5
    save_file(loudest, tmp_path / ACTIVATIONS)
    model = randomized(FAMILIES["llama tied"])
    out = export(model, tmp_path, "int8", calibration=Calibration(tmp_path))
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node if node.name.split("/")[0].endswith(".gate_up")]
    assert kinds == ["DynamicQuantizeMatMul", "MatMulNBits", "DynamicQuantizeMatMul"]


def calibrated(model: PreTrainedModel, folder: Path) -> Calibration:
    """On random tokens."""
    read: list[torch.Tensor] = []
    handles = [
        layer.mlp.gate_proj.register_forward_pre_hook(lambda module, args: read.append(args[0][0]))
        for layer in model.model.layers
    ]
    reference(model, np.random.default_rng(0).integers(0, 99, 128))
    for handle in handles:
        handle.remove()
    folder.mkdir()
    loudest = {f"layers.{layer}.mlp.input": rows.abs().amax(dim=0) for layer, rows in enumerate(read)}
    save_file(loudest, folder / ACTIVATIONS)
    return Calibration(folder)


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Gate and up read four channels that are sixty times as loud, with weights that are a sixtieth."""
    loud = torch.where(torch.arange(64) % 16 == 3, 60.0, 1.0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.mul_(loud)
            layer.mlp.gate_proj.weight.div_(loud)
            layer.mlp.up_proj.weight.div_(loud)
    return model


def whole_products(out: Path) -> int:
    nodes = onnx.load(out / "model.onnx", load_external_data=False).graph.node
    return sum(node.op_type == "DynamicQuantizeMatMul" for node in nodes)


@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_is_the_same_function(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibrated graph whose matrices keep their floats gives the model's own logits to 1e-4."""
    smoothed = []

    def as_blocks(
        data: ExternalData, weights: Checkpoint, name: str, sources: list[str], bits: int, size: int
    ) -> FloatMatrix | FloatTable:
        if "_proj" not in name:
            return store_table(data, weights, name, name, np.dtype(np.float32))
        return store_matrix(data, weights, name, sources, np.dtype(np.float32))

    def as_channels(data: ExternalData, name: str, weight: NDArray[np.float32]) -> FloatMatrix:
        smoothed.append(name)
        return FloatMatrix(data.add(name, weight.T))

    monkeypatch.setattr(export_graph, "store_blocks", as_blocks)
    monkeypatch.setattr(export_graph, "store_channels", as_channels)
    model = with_outliers(randomized(FAMILIES[family]))
    out = export(model, tmp_path, "int8", calibration=calibrated(model, tmp_path / "calibration"))
    assert len(smoothed) == len(model.model.layers)
    for position, logits in in_chunks(Loop(open_graph(out / "model.onnx")), CHUNKINGS[2]):
        assert error(logits, reference(model, TOKENS)[position]) < 1e-4


def test_smoothing_saves_most_of_what_outliers_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL from the float model, beside the same products rounded to nearest as they are."""
    model = with_outliers(randomized(FAMILIES["llama tied"]))
    expected = torch.from_numpy(reference(model, TOKENS)).log_softmax(dim=-1)
    calibration = calibrated(model, tmp_path / "calibration")
    found = {}
    for name in ("smoothed", "nearest"):
        (tmp_path / name).mkdir()
        if name == "nearest":
            monkeypatch.setattr(export_graph, "smoothing", lambda loudest, weight: np.ones(64, np.float32))
            monkeypatch.setattr(export_graph, "evened_out", lambda loudest, scales: True)
        out = export(model, tmp_path / name, "int8", calibration=calibration)
        assert whole_products(out) == len(model.model.layers)
        logits = dict(in_chunks(Loop(open_graph(out / "model.onnx")), CHUNKINGS[2]))
        rounded = torch.from_numpy(np.stack(list(logits.values()))).log_softmax(dim=-1)
        wanted = expected[list(logits)]
        found[name] = float((wanted.exp() * (wanted - rounded)).sum(dim=-1).mean())
    assert found["smoothed"] < 0.2 * found["nearest"]


def test_a_calibrated_graph_is_the_same_to_the_byte(tmp_path: Path) -> None:
    model = randomized(FAMILIES["llama tied"])
    calibration = calibrated(model, tmp_path / "calibration")
    written = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        out = export(model, tmp_path / name, "int8", calibration=calibration)
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {"model.onnx", "head.onnx", "model.onnx.data"}


@pytest.mark.parametrize("family", ["llama tied", "llama biases", "qwen3 tied"])
def test_a_calibrated_int8_graph_is_the_model(family: str, tmp_path: Path) -> None:
    """Gate and up round what they read as a whole; with float activations, as rounded weights say to 1e-4."""
    model = randomized(FAMILIES[family])
    read: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_pre_hook(lambda module, args: read.append(args[0][0]))
    reference(model, np.random.default_rng(0).integers(0, 99, 128))
    loudest = [rows.abs().amax(dim=0) for rows in read]
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    save_file(
        {f"layers.{layer}.mlp.input": found for layer, found in enumerate(loudest)},
        calibration / ACTIVATIONS,
    )
    out = export(model, tmp_path, "int8", calibration=Calibration(calibration))
    kinds = [node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == len(loudest)
    smoothed = [
        torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).detach().numpy()
        for layer in model.model.layers
    ]
    round_weights(model, "int8", 32)
    with torch.no_grad():
        for layer, weight, found in zip(model.model.layers, smoothed, loudest, strict=True):
            scales = smoothing(found.numpy(), weight)
            quantized, steps = quantize_channels(weight * scales)
            rounded = torch.from_numpy(quantized * steps[:, None] / scales)
            gate, up = rounded.chunk(2)
            layer.mlp.gate_proj.weight.copy_(gate)
            layer.mlp.up_proj.weight.copy_(up)
    expected = reference(model, TOKENS)
    write_variant(out, tmp_path / "floats", float_activations)
    for position, logits in in_chunks(Loop(open_graph(tmp_path / "floats" / "model.onnx")), CHUNKINGS[2]):
        assert error(logits, expected[position]) < 1e-4
    for sizes in CHUNKINGS:
        for position, logits in in_chunks(Loop(open_graph(out / "model.onnx")), sizes):
            assert error(logits, expected[position]) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_weights_are_streamed(tmp_path: Path, precision: Precision) -> None:
    model = randomized(
        lambda: LlamaForCausalLM(
            LlamaConfig(**SHAPE | {"vocab_size": 60_000, "num_hidden_layers": 1}, tie_word_embeddings=True)
        )
    )
    model.to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    tracemalloc.start()
    try:
        (tmp_path / "out").mkdir()
        write_graph(tmp_path / "checkpoint", tmp_path / "out", precision, 32, CONTEXT, ignore)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    model_bytes = 4 * 60_000 * 64
    assert peak < 0.8 * model_bytes


def test_progress_is_told(tmp_path: Path) -> None:
    randomized(FAMILIES["llama tied"]).save_pretrained(tmp_path / "checkpoint")
    told = []
    (tmp_path / "out").mkdir()
    write_graph(
        tmp_path / "checkpoint", tmp_path / "out", "int8", 32, CONTEXT, lambda *what: told.append(what)
    )
    assert told == [("layer", done, 3) for done in range(4)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    randomized(FAMILIES["llama untied"]).save_pretrained(folder)
    (tmp_path / "out").mkdir()
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def refusal(
    kind: type[Exception], folder: Path, precision: Precision = "fp32", context: int = CONTEXT
) -> str:
    with pytest.raises(kind) as caught:
        write_graph(folder, folder.parent / "out", precision, 32, context, ignore)
    return str(caught.value)


UP = "model.layers.1.mlp.up_proj.weight"


def test_refuses_a_missing_tensor(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(UP))
    assert f"lacks {UP}" in refusal(CheckpointError, checkpoint)


def test_refuses_another_shape(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({UP: torch.ones(95, 64)}))
    message = f'"{UP}" has shape [95, 64]; config.json promises [96, 64]'
    assert message in refusal(CheckpointError, checkpoint)


def test_refuses_a_tensor_it_would_leave_out(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(64)}))
    assert f"no place for {name}" in refusal(ExportError, checkpoint)


def test_old_rotary_buffers_are_no_weights(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(8)}))
    write_graph(checkpoint, checkpoint.parent / "out", "fp32", 32, CONTEXT, ignore)


def test_refuses_a_tied_head_of_its_own(checkpoint: Path) -> None:
    change_config(checkpoint, tie_word_embeddings=True)
    assert "set tie_word_embeddings to false" in refusal(ExportError, checkpoint)


def test_a_stored_copy_of_the_tied_head_is_fine(checkpoint: Path) -> None:
    def tie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(checkpoint, tie)
    change_config(checkpoint, tie_word_embeddings=True)
    write_graph(checkpoint, checkpoint.parent / "out", "fp32", 32, CONTEXT, ignore)


def test_refuses_a_context_beyond_the_checkpoints(checkpoint: Path) -> None:
    assert "a context of 129 tokens" in refusal(ExportError, checkpoint, context=129)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_refuses_nan(checkpoint: Path, precision: Precision) -> None:
    change_tensors(checkpoint, lambda tensors: tensors[UP][3].fill_(float("nan")))
    assert f'tensor "{UP}"' in refusal(CheckpointError, checkpoint, precision)


def test_refuses_what_half_precision_cannot_hold(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors[UP][3].fill_(-70_000.0))
    assert f'"{UP}" has values beyond' in refusal(ExportError, checkpoint, "fp16")


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "head.onnx"])
def test_a_full_disk_is_one_sentence(checkpoint: Path, name: str) -> None:
    (checkpoint.parent / "out" / name).symlink_to("/dev/full")
    assert "No space left" in refusal(ExportError, checkpoint)


def test_configs_are_what_the_families_say() -> None:
    """The lambdas above would not notice a misspelt key: transformers keeps it as an unused attribute."""
    for make in FAMILIES.values():
        config: PretrainedConfig = make().config
        assert config.num_hidden_layers == 3
        assert config.max_position_embeddings == 128
