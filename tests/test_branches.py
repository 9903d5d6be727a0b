"""A switchable graph against the unmerged PEFT model, and against itself before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from peft import AdaLoraConfig
from safetensors.numpy import save_file
from switchable import SEVEN, converted, peft_adapter, switchable_graph, unmerged
from test_graph import FAMILIES, randomized

from export.branches import Switchable
from export.calibration import ACTIVATIONS, Calibration
from export.graph import Precision, write_graph
from export.weights import Checkpoint
from pipeline.adapter import read_adapter
from pipeline.factors import factors
from pipeline.fingerprint import fingerprint
from runtime.adapters import Adapter, load_adapter
from runtime.decoder import Decoder
from runtime.errors import AdapterError, BundleError, ExportError
from runtime.sites import Sites, read_adapter_record, read_sites

CONTEXT = 48
TOKENS = [1, 33, 66, 20, 64, 2, 21, 1, 67, 62, 44, 20, 17, 99, 30]


def ignore(what: str, done: int, total: int) -> None:
    """No progress."""


def opened(file: Path, graph: Path) -> Adapter:
    """Loaded for a graph of whose tokenizer the adapter's word is taken."""
    belongs = read_adapter_record(file.with_suffix(".json")).belongs
    return load_adapter(file, read_sites(graph), belongs.tokenizer, belongs.template)


def relative(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max() / np.abs(right).max())


@torch.inference_mode()
def logits(base: Path, adapter: Path | None, tokens: list[int]) -> NDArray[np.float32]:
    return unmerged(base, adapter)(torch.tensor([tokens])).logits[0].float().numpy()


@pytest.fixture(scope="module")
def graph(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return switchable_graph(tiny_checkpoint, tmp_path_factory.mktemp("switchable"), "fp32", CONTEXT)


@pytest.fixture(scope="module")
def decoder(graph: Path) -> Decoder:
    return Decoder(graph, CONTEXT, 467, threads=1)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "rank of the maximum": {"r": 8},
    "ranks and scales by pattern": {
        "rank_pattern": {"q_proj": 1, "down_proj": 7},
        "alpha_pattern": {"v_proj": 3},
    },
    "part of a product": {"target_modules": ["k_proj", "up_proj"]},
    "the last layer": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_it_is_the_unmerged_model(
    settings: dict[str, Any],
    tiny_checkpoint: Path,
    tiny_exported: Path,
    graph: Path,
    decoder: Decoder,
    tmp_path: Path,
) -> None:
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1, **settings)
    file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", "task")
    expected = logits(tiny_checkpoint, peft, TOKENS)
    assert relative(logits(tiny_checkpoint, None, TOKENS), expected) > 0.01
    adapted = decoder.beside(opened(file, graph))
    assert relative(adapted.score(TOKENS), expected) < 1e-5
    adapted.feed(TOKENS[:6])
    for token in TOKENS[6:-1]:
        adapted.feed([token])
    assert relative(adapted.feed(TOKENS[-1:]), expected[-1]) < 1e-5


@pytest.mark.parametrize("family", ["llama biases", "qwen2 windows", "qwen3 tied", "llama head_dim"])
def test_other_families(family: str, tiny_exported: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    randomized(FAMILIES[family]).save_pretrained(base)
    tokens = [token % 99 for token in TOKENS]
    graph = switchable_graph(base, tmp_path / "graph", "fp32", CONTEXT)
    peft = peft_adapter(base, tmp_path / "peft", 1)
    file = converted(base, peft, tiny_exported, graph, tmp_path / "out", "task")
    decoder = Decoder(graph, CONTEXT, 99, threads=1)
    assert relative(decoder.score(tokens), logits(base, None, tokens)) < 1e-5
    assert relative(decoder.beside(opened(file, graph)).score(tokens), logits(base, peft, tokens)) < 1e-5


@pytest.mark.parametrize("precision", get_args(Precision))
def test_without_an_adapter_it_is_the_plain_graph(
    precision: Precision, tiny_checkpoint: Path, tiny_exported: Path, tmp_path: Path
) -> None:
    graph = switchable_graph(tiny_checkpoint, tmp_path / "switchable", precision, CONTEXT)
    plain = tmp_path / "plain"
    plain.mkdir()
    write_graph(tiny_checkpoint, plain, precision, 32, CONTEXT, ignore)
    assert (plain / "model.onnx.data").read_bytes() == (graph / "model.onnx.data").read_bytes()
    reference, decoder = Decoder(plain, CONTEXT, 467, threads=1), Decoder(graph, CONTEXT, 467, threads=1)
    expected = [reference.feed(TOKENS[:9]), reference.feed([5]), reference.score(TOKENS)]

    def base() -> list[NDArray[np.float32]]:
        decoder.reset()
        return [decoder.feed(TOKENS[:9]), decoder.feed([5]), decoder.score(TOKENS)]

    assert all(map(np.array_equal, base(), expected))
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1)
    file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", "task")
    adapted = decoder.beside(opened(file, graph))
    assert relative(adapted.score(TOKENS), expected[2]) > 0.01
    assert all(map(np.array_equal, base(), expected))


def test_there_and_back_is_the_same_to_the_bit(
    tiny_checkpoint: Path, tiny_exported: Path, graph: Path, decoder: Decoder, tmp_path: Path
) -> None:
    lanes = []
    for seed, rank in ((1, 2), (2, 7)):
        peft = peft_adapter(tiny_checkpoint, tmp_path / f"peft{seed}", seed, r=rank)
        file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", f"task{seed}")
        lanes.append(decoder.beside(opened(file, graph)))
    lanes.append(decoder)

    def answers() -> list[bytes]:
        for lane in lanes:
            lane.reset()
            lane.feed(TOKENS[:4])
        # A token at a time in turn: every run follows one of another adapter.
        return [lane.feed([token]).tobytes() for token in TOKENS[4:] for lane in lanes]

    first = answers()
    assert len(set(first)) == len(first)
    assert answers() == first


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_files_are_rounded_once(
    dtype: Any, tiny_checkpoint: Path, tiny_exported: Path, graph: Path, decoder: Decoder, tmp_path: Path
) -> None:
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1)
    files = [
        converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / kind, "task", kind)
        for kind in ("float32", dtype)
    ]
    assert files[1].stat().st_size < files[0].stat().st_size * (0.6 if dtype == "float16" else 0.5)
    whole, small = (opened(file, graph) for file in files)
    assert whole.values.keys() == small.values.keys()
    for name, value in whole.values.items():
        exact, rounded = value, small.values[name]
        loudest = np.abs(exact).max(axis=0 if "lora_A" in name else 1, keepdims=True)
        step = np.abs(exact) * 2.0**-10 if dtype == "float16" else loudest / 127
        assert (np.abs(rounded - exact) <= step * 0.501 + 2.0**-25).all()
        assert not np.array_equal(rounded, exact)
    distance = relative(decoder.beside(small).score(TOKENS), decoder.beside(whole).score(TOKENS))
    assert 0 < distance < 0.1


def test_half_precision_throughout(tiny_checkpoint: Path, tiny_exported: Path, tmp_path: Path) -> None:
    graph = switchable_graph(tiny_checkpoint, tmp_path / "graph", "fp16", CONTEXT)
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1)
    decoder = Decoder(graph, CONTEXT, 467, threads=1)
    for dtype in ("float32", "float16"):
        file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / dtype, "task", dtype)
        scores = decoder.beside(opened(file, graph)).score(TOKENS)
        assert relative(scores, logits(tiny_checkpoint, peft, TOKENS)) < 1e-2


def test_the_file_is_one_that_onnx_runtime_takes_itself(
    tiny_checkpoint: Path, tiny_exported: Path, graph: Path, decoder: Decoder, tmp_path: Path
) -> None:
    import onnxruntime

    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1)
    file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", "task")
    options, run = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph / "model.onnx"), options)
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(file))
    run.add_active_adapter(adapter)
    feeds = {"input_ids": np.array([TOKENS]), "attention_mask": np.ones((1, len(TOKENS)), np.int64)}
    feeds |= {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    found = session.run(["logits"], feeds, run)[0][0, 0]
    assert relative(found, decoder.beside(opened(file, graph)).score(TOKENS)[-1]) < 1e-6


def test_two_weights_of_one_product_share_a_branch(graph: Path, tiny_checkpoint: Path) -> None:
    sites = read_sites(graph)
    assert [site.a for site in sites.sites[:4]] == [
        f"model.layers.0.{product}.lora_A.MatMul.weight"
        for product in ("attn.qkv_proj", "attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    ]
    parts = [part.tensor for site in sites.sites for part in site.parts]
    assert sorted(parts) == sorted(
        name for name in Checkpoint(tiny_checkpoint).names if name.endswith("_proj.weight")
    )
    assert len(parts) == 2 * len(SEVEN)


def test_a_calibrated_graph_takes_the_same_adapter(
    tiny_checkpoint: Path, tiny_exported: Path, tmp_path: Path
) -> None:
    """Gate and up read a smoothed input, their branch the plain one: what the adapter adds is the same."""
    rng = np.random.default_rng(0)
    channels = rng.uniform(1, 40, (2, 64)).astype(np.float32)  # so that the scales are far from 1
    save_file({f"layers.{n}.mlp.input": row for n, row in enumerate(channels)}, tmp_path / ACTIVATIONS)
    calibration = Calibration(tmp_path)
    digests = fingerprint(tiny_checkpoint).tensors
    graphs = {}
    for kind, adaptable in (("plain", None), ("switchable", Switchable(8, digests))):
        graphs[kind] = tmp_path / kind
        graphs[kind].mkdir()
        write_graph(tiny_checkpoint, graphs[kind], "int8", 32, CONTEXT, ignore, calibration, adaptable)
    kinds = [node.op_type for node in onnx.load(graphs["switchable"] / "model.onnx").graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 2
    plain, decoder = (Decoder(graph, CONTEXT, 467, threads=1) for graph in graphs.values())
    assert np.array_equal(decoder.score(TOKENS), plain.score(TOKENS))
    # Gate and up alone, so that what is seen went through their branch.
    peft = peft_adapter(
        tiny_checkpoint, tmp_path / "peft", 1, target_modules=["gate_proj", "up_proj"], lora_alpha=16
    )
    file = converted(tiny_checkpoint, peft, tiny_exported, graphs["switchable"], tmp_path / "out", "task")
    adapted = decoder.beside(opened(file, graphs["switchable"])).score(TOKENS)
    expected, without = logits(tiny_checkpoint, peft, TOKENS), logits(tiny_checkpoint, None, TOKENS)
    rounding = np.abs(decoder.score(TOKENS) - without).mean()
    assert np.abs(adapted - expected).mean() < 1.5 * rounding
    assert np.abs(without - expected).mean() > 4 * rounding


def test_every_weight_needs_a_digest_and_adapters_a_rank(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for switchable, problem in (
        (Switchable(8, {}), r"no digest of model\.layers\.0\.self_attn\.q_proj\.weight"),
        (Switchable(0, fingerprint(tiny_checkpoint).tensors), "rank of an adapter must be 1 or more, not 0"),
    ):
        with pytest.raises(ExportError, match=problem):
            write_graph(tiny_checkpoint, tmp_path, "fp32", 32, CONTEXT, ignore, None, switchable)


def test_adalora_s_values_are_folded_into_its_factors(
    tiny_checkpoint: Path, tiny_exported: Path, graph: Path, decoder: Decoder, tmp_path: Path
) -> None:
    settings = {"r": 8, "init_r": 6, "target_r": 4, "total_step": 10}
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1, AdaLoraConfig, **settings)
    file = converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", "task")
    expected = logits(tiny_checkpoint, peft, TOKENS)
    assert relative(logits(tiny_checkpoint, None, TOKENS), expected) > 1e-3
    assert relative(decoder.beside(opened(file, graph)).score(TOKENS), expected) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, r'"use_dora": "model\.layers\.0\.mlp\.down_proj\.weight" has lengths'),
        ({"target_modules": ["q_proj", "lm_head"]}, r'"lm_head\.weight" is the embedding or the head'),
        ({"target_modules": ["embed_tokens"]}, r'"model\.embed_tokens\.weight" is the embedding or the head'),
        ({"lora_bias": True}, r'"lora_bias": "model\.layers\.0\.mlp\.down_proj\.bias" is no product'),
        ({"modules_to_save": ["norm"]}, r'"model\.norm\.weight" takes the place'),
    ],
)
# PEFT warns of just what is refused here.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_what_has_no_branch_is_refused_by_name(
    settings: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1, **settings)
    with pytest.raises(AdapterError, match=message) as refused:
        factors(read_adapter(peft), Checkpoint(tiny_checkpoint))
    assert "can be merged, but not kept unmerged" in str(refused.value)


def test_a_plain_graph_takes_no_adapter(
    tiny_checkpoint: Path, tiny_exported: Path, graph: Path, tmp_path: Path
) -> None:
    peft = peft_adapter(tiny_checkpoint, tmp_path / "peft", 1)
    adapter = opened(converted(tiny_checkpoint, peft, tiny_exported, graph, tmp_path / "out", "task"), graph)
    with pytest.raises(BundleError, match="has no inputs for the adapter task") as refused:
        Decoder(tiny_exported, CONTEXT, 467, threads=1).beside(adapter)
    assert len(refused.value.problems) == 16


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value["sites"].append(value["sites"][0]), "each input and each weight once"),
        (lambda value: value.update(most_rank=0), "each input and each weight once"),
        (lambda value: value.update(sites=[]), "each input and each weight once"),
        (lambda value: value.update(format_version=2), "format_version must be one of 1"),
        (lambda value: value.pop("dtype"), "dtype is missing"),
    ],
)
def test_damaged_sites(change: Any, problem: str, graph: Path, tmp_path: Path) -> None:
    value = json.loads((graph / "adapter_sites.json").read_text(encoding="utf-8"))
    change(value)
    (tmp_path / "adapter_sites.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BundleError, match=problem):
        read_sites(tmp_path)


def test_sites_survive_the_file(graph: Path) -> None:
    sites = read_sites(graph)
    assert isinstance(sites, Sites)
    assert (sites.most_rank, sites.dtype) == (8, "float32")
