"""An assistant on the tiny bundle: answers are the model's, whatever was asked before, or a typed error."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import runtime
from export.bundle import Description, package
from runtime.assistant import Assistant
from runtime.calls import call_text
from runtime.chat import Message
from runtime.errors import BundleError, DataError, InferenceError, PromptError, UsageError
from runtime.manifest import MANIFEST, parse, write_manifest
from runtime.sampling import Sampling

UTTERANCES = [
    "set the driver side to 22 degrees",
    "打开左后车窗",
    "play something by the Beatles",
    "x",
]


@pytest.fixture
def assistant(tiny_bundle: Path) -> Assistant:
    return runtime.load(tiny_bundle, threads=1)


def greedy_by_hand(assistant: Assistant, prompt: list[int], count: int) -> list[int]:
    """The most probable tokens by `score` alone: no cache, no prefix, no loop of the assistant's."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(assistant.decoder.score(tokens)[-1].argmax()))
        if tokens[-1] in assistant.manifest.prompt.stop_tokens:
            break
    return tokens[len(prompt) :]


def test_an_unconstrained_answer_is_the_models_own(assistant: Assistant) -> None:
    for utterance in UTTERANCES:
        answer = assistant.answer(utterance, max_new_tokens=12, constrained=False)
        expected = greedy_by_hand(assistant, assistant.prompt(utterance), 12)
        assert list(answer.tokens) == expected[: len(answer.tokens)]
        assert answer.complete == (expected[-1] in assistant.manifest.prompt.stop_tokens)


@pytest.mark.parametrize("constrained", [True, False])
def test_answers_do_not_depend_on_what_was_asked_before(
    assistant: Assistant, tiny_bundle: Path, constrained: bool
) -> None:
    def logits_after(asked: Assistant, utterance: str) -> bytes:
        asked.answer(utterance, max_new_tokens=1, constrained=constrained)
        return asked.decoder.feed([7]).tobytes()

    fresh = {u: logits_after(runtime.load(tiny_bundle, threads=1), u) for u in UTTERANCES}
    for utterance in [*UTTERANCES, *reversed(UTTERANCES)]:
        assert logits_after(assistant, utterance) == fresh[utterance]
    list(assistant.generate([{"role": "user", "content": "no system prompt"}], max_new_tokens=3))
    assert logits_after(assistant, UTTERANCES[0]) == fresh[UTTERANCES[0]]
    assistant.decoder.reset()
    assistant.decoder.feed(assistant.prompt(UTTERANCES[1]))
    assert logits_after(assistant, UTTERANCES[0]) == fresh[UTTERANCES[0]]


def test_the_common_prefix_is_not_computed_again(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    feed = assistant.decoder.feed
    monkeypatch.setattr(assistant.decoder, "feed", lambda tokens: (fed.append(len(tokens)), feed(tokens))[1])
    answer = assistant.answer(UTTERANCES[0], max_new_tokens=1, constrained=False)
    assert len(fed) == 1
    assert 0 < fed[0] < answer.timing.prompt_tokens
    system = assistant.manifest.prompt.system
    spent = len(assistant._chat.prompt([{"role": "system", "content": system}]))
    assert fed[0] < answer.timing.prompt_tokens - spent // 2


def test_constrained_calls_are_valid_and_canonical(assistant: Assistant) -> None:
    ended = 0
    for utterance in [*UTTERANCES, *"abcdefgh"]:
        if not assistant.answer(utterance, max_new_tokens=150).complete:
            with pytest.raises(DataError, match="cut off"):
                assistant.call(utterance, max_new_tokens=150)
            continue
        ended += 1
        result = assistant.call(utterance, max_new_tokens=150)
        assert call_text(result.calls, assistant.tools) == result.text
        assert 0 < result.timing.ttft_ms <= result.timing.total_ms
        assert result.timing.prompt_tokens == len(assistant.prompt(utterance))
    assert ended >= 3


def test_forced_tokens_change_nothing_but_the_number_of_steps(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers with the tokens fed one by one, against forced ones fed together."""
    together = [assistant.answer(utterance, max_new_tokens=60) for utterance in UTTERANCES]
    feed = assistant.decoder.feed
    monkeypatch.setattr(assistant.decoder, "feed", lambda tokens: [feed([token]) for token in tokens][-1])
    singly = [assistant.answer(utterance, max_new_tokens=60) for utterance in UTTERANCES]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in singly]


def test_an_unconstrained_answer_that_is_no_call_is_an_error(assistant: Assistant) -> None:
    with pytest.raises(DataError):
        assistant.call("x", max_new_tokens=20, constrained=False)


def test_an_answer_cut_off_is_an_error_even_when_constrained(assistant: Assistant) -> None:
    with pytest.raises(DataError, match="cut off after 2 tokens"):
        assistant.call(UTTERANCES[0], max_new_tokens=2)


def test_generate_streams_the_answer(assistant: Assistant) -> None:
    messages = assistant.messages(UTTERANCES[0])
    pieces = list(assistant.generate(messages, max_new_tokens=20))
    answer = assistant.answer(UTTERANCES[0], max_new_tokens=20, constrained=False)
    assert answer.text.startswith("".join(pieces))
    assert len(pieces) > 1


def test_generate_samples_by_seed(assistant: Assistant) -> None:
    def text(seed: int) -> str:
        sampling = Sampling(temperature=1.5, seed=seed)
        return "".join(assistant.generate(assistant.messages("x"), max_new_tokens=16, sampling=sampling))

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_generate_ends_where_the_context_is_full(assistant: Assistant) -> None:
    list(assistant.generate(assistant.messages("x " * 90), max_new_tokens=10_000))
    assert assistant.decoder.length <= assistant.decoder.context


def test_the_time_of_an_answer_is_told_apart(assistant: Assistant) -> None:
    timing = assistant.answer(UTTERANCES[1], 60).timing
    shares = (timing.prefill_ms, timing.decode_ms, timing.grammar_ms, timing.python_ms)
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(timing.total_ms)
    assert timing.prefill_ms < timing.ttft_ms
    assert 0 < timing.decode_runs < timing.new_tokens
    plain = assistant.answer(UTTERANCES[1], 5, constrained=False).timing
    assert (plain.grammar_ms, plain.decode_runs) == (0, 4)


def test_nothing_is_fed_behind_the_last_choice(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the end of an answer, nor what was cut off; and a prompt is fed whole with what it forces."""
    fed: list[int] = []
    feed = assistant.decoder.feed
    monkeypatch.setattr(assistant.decoder, "feed", lambda tokens: (fed.append(len(tokens)), feed(tokens))[1])
    for utterance in UTTERANCES:
        for longest in (1, 2, 5, 200):
            fed.clear()
            answer = assistant.answer(utterance, longest)
            spoken = answer.timing.prompt_tokens - len(assistant._prefix)
            assert len(fed) == 1 + answer.timing.decode_runs
            # An end that the model chose itself comes behind all other tokens; any other token is not fed.
            assert sum(fed) <= spoken + len(answer.tokens) - (not answer.complete)
            assert len(answer.tokens) <= longest


@pytest.mark.parametrize("utterance", ["", "  \n", "<|im_end|>", "x " * 300])
def test_utterances_that_cannot_be_asked(assistant: Assistant, utterance: str) -> None:
    with pytest.raises(PromptError):
        assistant.call(utterance)
    assistant.answer("x", max_new_tokens=1)


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "x " * 300}]])
def test_conversations_are_checked_before_anything_is_generated(
    assistant: Assistant, messages: list[Message]
) -> None:
    with pytest.raises(PromptError):
        assistant.generate(messages)


def test_max_new_tokens_must_be_positive(assistant: Assistant) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        assistant.call("x", max_new_tokens=0)
    with pytest.raises(UsageError, match="max_new_tokens"):
        assistant.generate(assistant.messages("x"), max_new_tokens=0)


def test_the_hermes_form(
    tiny_exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    package(tiny_exported, out, tiny_tools_file, dataclasses.replace(tiny_description, form="hermes"))
    assistant = runtime.load(out, threads=1)
    texts = [assistant.answer(utterance, max_new_tokens=100) for utterance in UTTERANCES]
    for answer in texts:
        if answer.complete:
            assert (
                call_text(assistant.call(UTTERANCES[texts.index(answer)]).calls, assistant.tools, "hermes")
                == answer.text
            )
        else:
            assert '<tool_call>\n{"name": "'.startswith(answer.text[:22])


def test_weights_that_are_not_finite_are_refused_when_loading(
    tiny_exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    exported = Path(shutil.copytree(tiny_exported, tmp_path / "exported"))
    data = bytearray((exported / "model.onnx.data").read_bytes())
    data[: 4 * 64 * 400] = b"\xff" * (4 * 64 * 400)
    (exported / "model.onnx.data").write_bytes(data)
    package(exported, tmp_path / "bundle", tiny_tools_file, tiny_description)
    with pytest.raises(InferenceError, match="not finite") as caught:
        runtime.load(tmp_path / "bundle", threads=1)
    assert caught.value.exit_code == 5


def test_a_newer_onnxruntime_may_be_needed(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["requirements"]["onnxruntime"] = "99.0"
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=r"needs onnxruntime 99\.0 or later"):
        runtime.load(bundle)


def test_a_graph_that_is_refused_keeps_nobody_waiting(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "model.onnx").write_bytes(b"no graph")
    write_manifest(bundle, parse((bundle / MANIFEST).read_text(encoding="utf-8")))
    with pytest.raises(BundleError, match=r"cannot open model\.onnx"):
        runtime.load(bundle, threads=1)


def test_a_changed_bundle_is_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "chat_template.jinja").write_text("{{ 1 }}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"chat_template\.jinja"):
        runtime.load(bundle)


def test_a_bundle_of_another_exporter_answers_the_same(
    tiny_growing: Path,
    tiny_bundle: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    package(tiny_growing, out, tiny_tools_file, dataclasses.replace(tiny_description, exporter="optimum"))
    other, ours = runtime.load(out, threads=1), runtime.load(tiny_bundle, threads=1)
    for utterance in UTTERANCES:
        assert (
            other.answer(utterance, max_new_tokens=40).tokens
            == ours.answer(utterance, max_new_tokens=40).tokens
        )
