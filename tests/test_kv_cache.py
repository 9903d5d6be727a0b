"""Keys and values in int8: what the cache holds, what that changes, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from test_calibrate import SYSTEM
from test_calibrate import calibration as calibration  # fixtures
from test_calibrate import data as data
from transformers import AutoModelForCausalLM, AutoTokenizer

import runtime
from export.branches import Switchable
from export.bundle import MINIMUM_ONNXRUNTIME, MINIMUM_WITH_INT8_CACHE, Description, package
from export.calibration import ACTIVATIONS, Calibration
from export.checkpoint import export_checkpoint
from export.graph import Precision, write_graph
from export.kv_cache import scales
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.fingerprint import fingerprint
from runtime.calls import load_tools
from runtime.decoder import Decoder
from runtime.errors import ExportError, UsageError
from runtime.manifest import verify

CONTEXT, VOCABULARY = 128, 467


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def kept(tiny_checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights with caches in int8, so that nothing but caches is rounded."""
    out = tmp_path_factory.mktemp("kept")
    write_graph(tiny_checkpoint, out, "fp32", 32, CONTEXT, silent, Calibration(calibration), kv_cache="int8")
    return out


@pytest.fixture(scope="module")
def tokens(tiny_checkpoint: Path, data: Path) -> list[int]:
    """A conversation like those that were calibrated on, and none of them."""
    tokenizer, tools = AutoTokenizer.from_pretrained(tiny_checkpoint), load_tools(data / "tools.json")
    example = render(read_records(data / "train.jsonl")[-1], tokenizer, tools, SYSTEM)
    return [*example.prompt, *example.answer]


def opened(folder: Path) -> Decoder:
    return Decoder(folder, CONTEXT, VOCABULARY, threads=1)


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_logits_are_close_to_the_models(
    kept: Path, tokens: list[int], tiny_exported: Path, tiny_checkpoint: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = opened(kept).score(tokens)
    assert 1e-5 < error(found, expected) < 0.05
    assert error(found, opened(tiny_exported).score(tokens)) < 0.05


def test_what_is_kept_is_the_float_cache_in_steps_of_its_scales(
    kept: Path, tokens: list[int], tiny_exported: Path, calibration: Path
) -> None:
    """Of the first layer, in front of which nothing is rounded."""
    rounded, floats = opened(kept), opened(tiny_exported)
    for decoder in (rounded, floats):
        decoder.feed(tokens)
    of_each = scales(Calibration(calibration), 0, 2, 16)
    for part, each in enumerate(of_each):
        integers, values = (one.cached(len(tokens))[part] for one in (rounded, floats))
        steps = np.clip(values / each[0], -128, 127)
        assert integers.dtype == np.int8
        assert np.abs(integers - steps).max() < 0.5 + 1e-3
        assert np.abs(steps).max() > 60


@pytest.mark.parametrize("sizes", [(1,), (4, 1, 1, 9), (20, 1), (7,)])
def test_pieces_equal_the_whole(kept: Path, tokens: list[int], sizes: tuple[int, ...]) -> None:
    """A prompt, too, attends to what is rounded: every way through the cache is one function."""
    decoder = opened(kept)
    scores = decoder.score(tokens)
    for size in itertools.cycle(sizes):
        logits = decoder.feed(tokens[decoder.length : decoder.length + size])
        assert error(logits, scores[decoder.length - 1]) < 1e-5
        if decoder.length == len(tokens):
            break
    decoder.rewind(6)
    assert error(decoder.feed(tokens[6:]), scores[-1]) < 1e-5


def test_a_conversation_goes_on_from_what_was_kept(kept: Path, tokens: list[int]) -> None:
    decoder = opened(kept)
    decoder.feed(tokens[:6])
    found = [array.copy() for array in decoder.cached(6)]
    assert [(array.shape, array.dtype) for array in found] == decoder.layout(6)
    other = decoder.another()
    other.restore(found)
    assert np.array_equal(other.feed(tokens[6:]), decoder.feed(tokens[6:]))


def test_caches_take_a_quarter(kept: Path, tiny_exported: Path) -> None:
    sizes = [sum(array.nbytes for array in opened(one).cached(CONTEXT)) for one in (kept, tiny_exported)]
    assert 4 * sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_same_calibration_gives_the_same_bytes(
    precision: Precision, tiny_checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    written = []
    for name in ("one", "other"):
        out = tmp_path / name
        out.mkdir()
        export_checkpoint(tiny_checkpoint, out, precision, 32, CONTEXT, silent, calibration, kv_cache="int8")
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert written[0] == written[1]


def test_a_switchable_graph_without_an_adapter_is_the_plain_one(
    kept: Path, tokens: list[int], tiny_checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    switchable = Switchable(4, fingerprint(tiny_checkpoint).tensors)
    measured = Calibration(calibration)
    write_graph(tiny_checkpoint, tmp_path, "fp32", 32, CONTEXT, silent, measured, switchable, kv_cache="int8")
    assert error(opened(tmp_path).score(tokens), opened(kept).score(tokens)) < 1e-5


def test_a_bundle_of_it_answers_alike_from_a_cold_and_a_warm_start(
    tiny_checkpoint: Path,
    calibration: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    """With its weights packed, and the prompt's beginning restored from a file."""
    exported, bundle = tmp_path / "exported", tmp_path / "bundle"
    exported.mkdir()
    export_checkpoint(tiny_checkpoint, exported, "int8", 32, 256, silent, calibration, kv_cache="int8")
    package(exported, bundle, tiny_tools_file, dataclasses.replace(tiny_description, precision="int8"))
    assert verify(bundle).requirements.onnxruntime == MINIMUM_WITH_INT8_CACHE
    assert verify(tiny_bundle).requirements.onnxruntime == MINIMUM_ONNXRUNTIME
    asked = "set the driver side to 20 degrees"
    cold = runtime.load(bundle, threads=1)
    expected = "".join(cold.generate(cold.messages(asked), max_new_tokens=8))
    for _ in range(3):
        warm = runtime.load(bundle, threads=1, cache=tmp_path / "cache")
        assert "".join(warm.generate(warm.messages(asked), max_new_tokens=8)) == expected


def without(tensors: dict[str, np.ndarray]) -> None:
    del tensors["layers.1.values"]


def zero(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.1.keys"][[3, 7]] = 0


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.keys"][3] = np.inf


def narrow(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.values"] = tensors["layers.0.values"][:16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r'no "layers\.1\.values" of 32 channels .* `cockpit calibrate`'),
        (narrow, r'no "layers\.0\.values" of 32 channels .* `cockpit calibrate`'),
        (zero, r"of the keys of layer 1, 2 channels were zero"),
        (infinite, r"NaN or infinite"),
    ],
)
def test_a_calibration_of_no_use_is_refused(
    change: Callable[[dict[str, np.ndarray]], None],
    message: str,
    tiny_checkpoint: Path,
    calibration: Path,
    tmp_path: Path,
) -> None:
    tensors = load_file(calibration / ACTIVATIONS)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()}, tmp_path / ACTIVATIONS
    )
    with pytest.raises(ExportError, match=message):
        write_graph(
            tiny_checkpoint, tmp_path, "int8", 32, CONTEXT, silent, Calibration(tmp_path), kv_cache="int8"
        )


@pytest.mark.parametrize(
    ("precision", "message"), [("int8", "`cockpit calibrate`"), ("fp16", "for a CPU, .* for a GPU")]
)
def test_what_cannot_be_kept_in_int8_is_refused(
    precision: Precision, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        write_graph(tiny_checkpoint, tmp_path, precision, 32, CONTEXT, silent, kv_cache="int8")


def test_a_gpu_is_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ONNX Runtime would make of it there."""

    def elsewhere(path: Path, *options: object, **named: object) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("runtime.decoder.open_session", elsewhere)
    with pytest.raises(UsageError, match="int8, which runs on a CPU, not on cuda"):
        Decoder(kept, CONTEXT, VOCABULARY, threads=1, provider="cuda")
