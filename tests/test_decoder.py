"""The decoder against the model that transformers runs, and against itself in every way of feeding."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from runtime.decoder import Decoder
from runtime.errors import BundleError, InferenceError, PromptError, UsageError
from runtime.growing_decoder import GrowingDecoder

TOKENS = [1, 303, 266, 201, 464, 2, 201, 1, 67, 362, 414, 201, 17, 99, 300]
CONTEXT = 32
VOCABULARY = 467
AnyDecoder = Decoder | GrowingDecoder


@pytest.fixture(params=["in place", "growing"])
def decoder(request: pytest.FixtureRequest, tiny_exported: Path, tiny_growing: Path) -> AnyDecoder:
    if request.param == "growing":
        return GrowingDecoder(tiny_growing, CONTEXT, VOCABULARY, threads=1)
    return Decoder(tiny_exported, CONTEXT, VOCABULARY, threads=1)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> NDArray[np.float32]:
    """Logits (S, V) of transformers for TOKENS."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0].numpy())


def close(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    return bool(np.abs(left - right).max() < 1e-4 * np.abs(right).max())


def test_feed_and_score_are_the_model(decoder: AnyDecoder, expected: NDArray[np.float32]) -> None:
    logits = decoder.feed(TOKENS)
    scores = decoder.score(TOKENS)
    assert logits.shape == (VOCABULARY,)
    assert logits.dtype == scores.dtype == np.float32
    assert scores.shape == (len(TOKENS), VOCABULARY)
    assert close(logits, expected[-1])
    assert close(scores, expected)


@pytest.mark.parametrize("sizes", [[1] * 15, [4, 1, 1, 9], [14, 1], [7, 8]])
def test_pieces_equal_the_whole(decoder: AnyDecoder, expected: NDArray[np.float32], sizes: list[int]) -> None:
    at = 0
    for size in sizes:
        logits = decoder.feed(TOKENS[at : at + size])
        at += size
        assert close(logits, expected[at - 1])
        assert decoder.length == at


def test_rewind_forgets_what_came_after(decoder: AnyDecoder, expected: NDArray[np.float32]) -> None:
    decoder.feed(TOKENS[:6])
    decoder.feed([5, 6, 7, 8, 9, 10, 11])
    decoder.rewind(6)
    assert decoder.length == 6
    assert close(decoder.feed(TOKENS[6:]), expected[-1])


def test_the_same_pieces_give_the_same_bits(decoder: AnyDecoder) -> None:
    decoder.feed(TOKENS[:6])
    first = decoder.feed(TOKENS[6:])
    decoder.feed([400] * 10)
    decoder.rewind(6)
    assert np.array_equal(first, decoder.feed(TOKENS[6:]))
    decoder.reset()
    decoder.feed(TOKENS[:6])
    assert np.array_equal(first, decoder.feed(TOKENS[6:]))


def test_score_leaves_the_conversation_alone(decoder: AnyDecoder) -> None:
    decoder.feed(TOKENS[:6])
    first = decoder.feed(TOKENS[6:])
    decoder.rewind(6)
    decoder.score([7] * CONTEXT)
    assert decoder.length == 6
    assert np.array_equal(first, decoder.feed(TOKENS[6:]))


def test_what_is_bound_lives_while_it_is_computed_with(
    tiny_exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binding points to the memory of a value from numpy; before ONNX Runtime 1.32 it does not keep it."""
    made: list[weakref.ref[onnxruntime.OrtValue]] = []
    make, run = onnxruntime.OrtValue.ortvalue_from_numpy, Decoder._run

    def recorded(*arguments: Any) -> onnxruntime.OrtValue:
        value = make(*arguments)
        made.append(weakref.ref(value))
        return value

    def checked(self: Decoder, binding: onnxruntime.IOBinding) -> None:
        assert all(value() is not None for value in made)
        run(self, binding)

    for kind in ("input", "output"):
        bind = f"bind_ortvalue_{kind}"

        def only_points(self: Any, name: str, value: Any, bind: str = bind) -> None:
            getattr(self._iobinding, bind)(name, value._ortvalue)

        monkeypatch.setattr(onnxruntime.IOBinding, bind, only_points)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", recorded)
    monkeypatch.setattr(Decoder, "_run", checked)
    decoder = Decoder(tiny_exported, CONTEXT, VOCABULARY, threads=1)
    fed = len(made)
    decoder.feed(TOKENS)
    assert len(made) == fed > 0
    decoder.score(TOKENS)
    assert len(made) == 2 * fed


def test_logits_are_the_callers_own(decoder: AnyDecoder) -> None:
    first = decoder.feed(TOKENS)
    kept = first.copy()
    decoder.feed([3])
    assert np.array_equal(first, kept)


def test_the_whole_context_can_be_used(decoder: AnyDecoder) -> None:
    decoder.feed([5] * (CONTEXT - 1))
    assert np.isfinite(decoder.feed([6])).all()
    assert decoder.length == CONTEXT
    with pytest.raises(PromptError, match=f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}"):
        decoder.feed([7])
    decoder.rewind(3)
    assert np.isfinite(decoder.feed([6])).all()


@pytest.mark.parametrize(
    "tokens", [[], [-1], [VOCABULARY], [3, VOCABULARY + 5], [2**70], [1] * (CONTEXT + 1)]
)
def test_wrong_tokens_change_nothing(decoder: AnyDecoder, tokens: list[int]) -> None:
    before = decoder.feed(TOKENS[:4])
    for refused in (decoder.feed, decoder.score):
        with pytest.raises(PromptError):
            refused(tokens)
    assert decoder.length == 4
    decoder.rewind(0)
    assert np.array_equal(before, decoder.feed(TOKENS[:4]))


@pytest.mark.parametrize("length", [-1, 5])
def test_wrong_rewinds(decoder: AnyDecoder, length: int) -> None:
    decoder.feed(TOKENS[:4])
    with pytest.raises(PromptError, match="cannot rewind"):
        decoder.rewind(length)
    assert decoder.length == 4


def test_a_mark_lasts_until_it_is_rewound_behind(decoder: AnyDecoder) -> None:
    decoder.feed(TOKENS[:6])
    mark = decoder.mark()
    decoder.feed([4, 5])
    decoder.rewind(6)
    assert decoder.holds(mark)
    decoder.rewind(5)
    decoder.feed(TOKENS[5:6])
    assert decoder.length == 6
    assert not decoder.holds(mark)


@pytest.mark.parametrize("threads", [0, -1, (os.cpu_count() or 1) + 1])
def test_impossible_threads(tiny_exported: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="threads must be 1 to"):
        Decoder(tiny_exported, CONTEXT, VOCABULARY, threads=threads)


def test_a_missing_provider_is_not_replaced(tiny_exported: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    with pytest.raises(UsageError, match="cannot use cuda"):
        Decoder(tiny_exported, CONTEXT, VOCABULARY, provider="cuda")


@pytest.mark.parametrize("kind", [Decoder, GrowingDecoder])
def test_word_that_a_graph_has_been_read_comes_before_it_is_ready(
    kind: type[AnyDecoder], tiny_exported: Path, tiny_growing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime is what calls for it: by the time it returns, nobody has to be let go first."""
    order: list[str] = []

    class Word(Event):
        def set(self) -> None:
            order.append("parsed")
            super().set()

    def opened(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        session = original(*arguments, **options)
        order.append("ready")
        return session

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    folder = tiny_exported if kind is Decoder else tiny_growing
    decoder = kind(folder, CONTEXT, VOCABULARY, threads=1, parsed=Word())
    assert order == ["parsed", "ready"]
    assert decoder.feed([1]).shape == (VOCABULARY,)


def test_a_graph_that_cannot_be_opened(tiny_exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((tiny_exported / "model.onnx").read_bytes()[:500])
    with pytest.raises(BundleError, match=r"cannot open model\.onnx"):
        Decoder(tmp_path, CONTEXT, VOCABULARY)


def test_a_graph_of_another_kind(tiny_exported: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny_exported / "head.onnx", tmp_path / "model.onnx")
    shutil.copyfile(tiny_exported / "model.onnx.data", tmp_path / "model.onnx.data")
    with pytest.raises(BundleError, match="unexpected inputs: hidden_states"):
        Decoder(tmp_path, CONTEXT, VOCABULARY)


def test_not_finite_numbers_are_an_error_and_not_the_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    poisoned = 300
    export_with_poisoned_token(tiny_checkpoint, tmp_path, poisoned)
    decoder = Decoder(tmp_path, CONTEXT, VOCABULARY, threads=1)
    decoder.feed(TOKENS[:4])
    first = decoder.feed([5, 6])
    decoder.rewind(4)
    with pytest.raises(InferenceError, match="not finite"):
        decoder.feed([5, poisoned])
    with pytest.raises(InferenceError, match="not finite"):
        decoder.score([5, poisoned])
    assert decoder.length == 4
    assert np.array_equal(first, decoder.feed([5, 6]))


def export_with_poisoned_token(checkpoint: Path, out: Path, token: int) -> None:
    """Export with a head of its own, then make the embedding of one token NaN in the shipped weights."""
    from safetensors.numpy import load_file, save_file

    from export.graph import write_graph

    folder = out / "checkpoint"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"][::-1]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_graph(folder, out, "fp32", 32, CONTEXT, lambda what, done, total: None)
    row = tensors["model.embed_tokens.weight"][token].tobytes()
    data = (out / "model.onnx.data").read_bytes()
    at = data.find(row)
    assert at >= 0
    assert data.find(row, at + 1) < 0
    poison = np.full(config["hidden_size"], np.nan, np.float32).tobytes()
    (out / "model.onnx.data").write_bytes(data[:at] + poison + data[at + len(row) :])


def test_a_growing_graph_is_not_mistaken(tiny_exported: Path, tiny_growing: Path) -> None:
    with pytest.raises(BundleError, match="unexpected inputs"):
        Decoder(tiny_growing, CONTEXT, VOCABULARY, threads=1)
    with pytest.raises(BundleError, match="only the last position"):
        GrowingDecoder(tiny_exported, CONTEXT, VOCABULARY, threads=1)
