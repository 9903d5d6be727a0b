"""Answers that stop before their end: in time, typed, and without harm to the next one."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.assistant import Assistant
from runtime.errors import CancelledError, DeadlineError, InferenceError, PromptError, UsageError

UTTERANCE = "打开左后车窗"
"""The tiny model answers it in more than ten runs."""


@pytest.fixture
def assistant(tiny_bundle: Path) -> Assistant:
    return runtime.load(tiny_bundle, threads=1)


def slowed(assistant: Assistant, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Every run of the model takes so long; how many tokens each was given."""
    fed: list[int] = []
    feed = assistant.decoder.feed

    def slow(tokens: Any) -> Any:
        time.sleep(seconds)
        fed.append(len(tokens))
        return feed(tokens)

    monkeypatch.setattr(assistant.decoder, "feed", slow)
    return fed


def test_a_deadline_ends_an_answer_and_the_next_one_is_whole(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = assistant.answer(UTTERANCE, 30).tokens
    with monkeypatch.context() as slow:
        fed = slowed(assistant, slow, 0.05)
        with pytest.raises(DeadlineError, match=r"was not there after 0\.12 s") as caught:
            assistant.call(UTTERANCE, deadline_s=0.12)
        assert 1 <= len(fed) <= 3
        assert caught.value.exit_code == 1
    assert assistant.answer(UTTERANCE, 30, deadline_s=600).tokens == expected


def test_a_deadline_ends_a_stream_and_its_pieces_stay_true(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "".join(assistant.generate(assistant.messages(UTTERANCE), 30))
    with monkeypatch.context() as slow:
        slowed(assistant, slow, 0.02)
        stream = assistant.generate(assistant.messages(UTTERANCE), 30, deadline_s=0.1)
        pieces: list[str] = []
        with pytest.raises(DeadlineError):
            pieces.extend(stream)
    assert whole.startswith("".join(pieces))
    assert len("".join(pieces)) < len(whole)
    assert "".join(assistant.generate(assistant.messages(UTTERANCE), 30)) == whole


def test_a_stream_is_cancelled_before_the_next_run(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = Event()
    fed = slowed(assistant, monkeypatch, 0)
    stream = assistant.generate(assistant.messages(UTTERANCE), 100, cancel=cancel)
    next(stream)
    before = len(fed)
    cancel.set()
    with pytest.raises(CancelledError, match="was cancelled"):
        list(stream)
    assert len(fed) == before
    with pytest.raises(CancelledError):
        assistant.call(UTTERANCE, cancel=cancel)
    assert len(fed) == before


def test_another_thread_cancels(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(assistant, monkeypatch, 0.02)
    cancel = Event()
    Thread(target=lambda: (time.sleep(0.1), cancel.set())).start()
    with pytest.raises(CancelledError):
        list(assistant.generate(assistant.messages("x" * 5), 200, cancel=cancel))


def test_a_stream_that_is_closed_gives_its_conversation_back(assistant: Assistant) -> None:
    stream = assistant.generate(assistant.messages(UTTERANCE), 100)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [lane.answering for lane in assistant._tasks._lanes[None]] == [0]


def test_who_waits_for_a_turn_can_be_stopped_too(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = assistant.answer(UTTERANCE, 10).tokens
    slowed(assistant, monkeypatch, 0.1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(assistant.answer, UTTERANCE, 10)
        time.sleep(0.05)
        with pytest.raises(DeadlineError):
            assistant.answer(UTTERANCE, 10, deadline_s=0.1)
        assert first.result().tokens == expected


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_impossible_deadlines(assistant: Assistant, deadline: float) -> None:
    with pytest.raises(UsageError, match="deadline_s must be above 0"):
        assistant.call(UTTERANCE, deadline_s=deadline)


def test_many_threads_stream_and_answer_as_if_alone(assistant: Assistant) -> None:
    """Streams, answers, deadlines and cancelled ones of a single model at once."""
    asked = [UTTERANCE, "a", "x"]
    streamed = {text: "".join(assistant.generate(assistant.messages(text), 12)) for text in asked}
    answered = {text: assistant.answer(text, 12).tokens for text in asked}
    stopped = Event()
    stopped.set()

    def one(number: int) -> bool:
        text = asked[number % 3]
        match number % 4:
            case 0:
                return "".join(assistant.generate(assistant.messages(text), 12)) == streamed[text]
            case 1:
                return assistant.answer(text, 12).tokens == answered[text]
            case 2:
                stream = assistant.generate(assistant.messages(text), 12)
                next(stream)
                stream.close()  # type: ignore[attr-defined]
                return True
            case _:
                with pytest.raises(CancelledError):
                    assistant.answer(text, 12, cancel=stopped)
                return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(48)))
    assert [lane.answering for lane in assistant._tasks._lanes[None]] == [0]


def test_a_prompt_past_the_context_is_refused_before_the_model_runs(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = slowed(assistant, monkeypatch, 0)
    for ask in (
        lambda: assistant.call("x " * 300),
        lambda: assistant.call("x " * 300, constrained=False),
        lambda: assistant.generate(assistant.messages("x " * 300)),
    ):
        with pytest.raises(PromptError, match="the context holds 256, answer included; shorten it"):
            ask()
    assert fed == []


@pytest.mark.parametrize("text", ["open the window " * 1_000_000, "车窗" * 1_000_000, "x" * 1_000_000])
def test_of_a_prompt_that_is_far_too_long_little_is_read(
    assistant: Assistant, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding all of it would take seconds; there are 256 tokens to be had."""
    encode, read = assistant._chat._has_more_tokens, []

    class Counting:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def encode(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return self._tokenizer.encode(text, **options)

    assert not encode("short", 256)
    monkeypatch.setattr(assistant._chat, "tokenizer", Counting(assistant._chat.tokenizer))
    with pytest.raises(PromptError, match="the context holds 256, answer included; shorten it"):
        assistant.call(text)
    assert sum(read) < 20_000


def test_numbers_that_are_not_finite_end_an_answer_and_not_the_assistant(
    assistant: Assistant, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run leaves in the cache and in the logits is NaN, at the third run of an answer."""
    decoder: Any = assistant.decoder
    run = decoder._run

    def answered(text: str) -> bytes:
        assistant.answer(text, 8, constrained=False)
        return bytes(assistant.decoder.feed([7]).tobytes())

    expected = answered(UTTERANCE)
    for constrained in (True, False):
        runs: list[int] = []

        def poisoned(binding: Any, runs: list[int] = runs) -> None:
            run(binding)
            runs.append(1)
            if len(runs) == 3:
                decoder._logits[:] = np.nan
                for array in decoder._arrays.values():
                    array[0, :, decoder.length :] = np.nan

        with monkeypatch.context() as during:
            during.setattr(decoder, "_run", poisoned)
            with pytest.raises(InferenceError, match="not finite"):
                assistant.answer(UTTERANCE, 40, constrained=constrained)
        assert len(runs) == 3
        assert answered(UTTERANCE) == expected
        assert assistant.call(UTTERANCE, 200) if constrained else True


def test_an_operator_that_onnxruntime_lacks_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnx

    from runtime.decoder import Decoder
    from runtime.errors import BundleError

    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.op_type = "AttentionOfTomorrow"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(BundleError, match="AttentionOfTomorrow"):
        Decoder(folder, 32, 467, threads=1)
