"""Latency: interleaved contenders in processes of their own; a slowed, stopped or hanging one is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_baseline import RELEASE

import runtime
from pipeline.data.records import Record
from pipeline.evidence.baseline import against_baseline
from pipeline.evidence.contender import Call, Reply, Said, Torch
from pipeline.evidence.latency import CallPrompt, Contender, measure_latency, this_machine
from pipeline.evidence.own_calls import in_each_language, own_calls
from pipeline.evidence.thresholds import DEFAULTS, Limits
from pipeline.quiet import quiet_transformers
from runtime.errors import StageError, UsageError
from runtime.report import LatencyReport, distribution, from_json, to_json
from runtime.timing import Timing

UTTERANCES = ("set the driver side to 22 degrees", "open the rear left window half way", "play the Beatles")
OWN = {"en": ("close the sunroof", "a bit quieter"), "zh": ("关闭天窗", "小声一点", "打开车窗")}
MEGABYTES = 300 * 2**20


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def calls(tiny_bundle: Path) -> list[CallPrompt]:
    assistant = runtime.load(tiny_bundle, threads=1)
    stop = assistant.manifest.prompt.stop_tokens[0]
    return [CallPrompt(text, tuple(assistant.prompt(text)), stop) for text in UTTERANCES]


@pytest.fixture(scope="module")
def report(
    tiny_bundle: Path, tiny_checkpoint: Path, adapter: Path, calls: list[CallPrompt]
) -> tuple[LatencyReport, list[tuple[int, int]]]:
    """Every kind of contender, and what progress was told."""
    contenders = (
        Contender("unmerged", "unmerged", tiny_checkpoint, adapter),
        Contender("merged", "merged", tiny_checkpoint),
        Contender("bundle", "bundle", tiny_bundle),
        Contender("last release", "bundle", tiny_bundle),
    )
    told: list[tuple[int, int]] = []
    found = measure_latency(
        contenders, (8, 32), 3, 3, calls, OWN, 8, 1, lambda done, total: told.append((done, total))
    )
    return found, told


def test_every_contender_is_timed_in_the_same_rounds(
    report: tuple[LatencyReport, list[tuple[int, int]]],
) -> None:
    found, told = report
    names, compared = {"unmerged", "merged", "bundle", "last release"}, {"merged", "bundle", "last release"}
    # Three rounds and one not counted at each of two lengths; three calls and one not counted; five alone.
    assert told == [(done, 17) for done in range(1, 18)]
    assert [(point.prompt_tokens, point.new_tokens) for point in found.points] == [(8, 3), (32, 3)]
    for point in found.points:
        assert set(point.ttft) == set(point.token) == names
        assert {times.samples for times in point.ttft.values()} == {3}
        assert {times.samples for times in point.token.values()} == {9}
        assert set(point.ttft_ratio) == set(point.token_ratio) == compared
        for ratio in (*point.ttft_ratio.values(), *point.token_ratio.values()):
            assert 0 < ratio.low <= ratio.value <= ratio.high
            assert ratio.units == 3
        for times in (*point.ttft.values(), *point.token.values()):
            assert 0 < times.ventiles[0] <= times.p50 <= times.p95 <= times.p99 <= times.ventiles[20]
    assert found.call.utterances == 3
    assert set(found.call.times) == names
    assert set(found.call.ratio) == compared
    assert {times.samples for times in found.call.times.values()} == {3}
    assert {language: own.times.samples for language, own in found.own_calls.items()} == {"en": 2, "zh": 3}
    assert set(found.footprints) == names
    assert from_json(LatencyReport, to_json(found)) == found


def test_parts_of_the_bundle_s_own_calls_are_all_of_their_time(
    report: tuple[LatencyReport, list[tuple[int, int]]],
) -> None:
    for own in report[0].own_calls.values():
        parts = (own.prefill_ms, own.decode_ms, own.grammar_ms, own.python_ms)
        assert min(own.prefill_ms, own.grammar_ms, own.python_ms) > 0
        assert (own.decode_ms > 0) == (own.runs > 0)
        assert own.times.ventiles[0] <= sum(parts) <= own.times.ventiles[20]
        # Cut off at eight tokens: at most a run for each but the last.
        assert 0 < own.new_tokens <= 8
        assert own.runs <= 7


def test_every_language_is_asked_alike_however_rare_it_is() -> None:
    said = [("en", "a"), ("zh", "b"), ("en", "c"), ("en", "d"), ("en", "e")]
    records = [Record(text, text, (), language) for language, text in said]
    assert in_each_language(records, 3) == {"en": ["a", "c", "d"], "zh": ["b"]}


def test_means_of_parts_are_over_the_calls_and_python_is_what_is_left() -> None:
    def reply(took: float, runs: int, tokens: int, prefill: float, decode: float, grammar: float) -> Reply:
        timing = Timing(30, tokens, 1.0, took - 0.5, 0, runs, prefill, decode, grammar, 9.0)
        return Reply((took,), 1, timing)

    found = own_calls([reply(40.0, 4, 20, 10.0, 26.0, 3.0), reply(60.0, 7, 30, 12.0, 42.0, 4.0)])
    assert found.times == distribution((40.0, 60.0))
    assert (found.runs, found.new_tokens) == (5.5, 25.0)
    assert (found.prefill_ms, found.decode_ms, found.grammar_ms, found.python_ms) == (11.0, 34.0, 3.5, 1.5)


def test_torch_is_in_the_processes_that_need_it_alone(
    report: tuple[LatencyReport, list[tuple[int, int]]],
) -> None:
    peaks = {name: footprint.peak_bytes for name, footprint in report[0].footprints.items()}
    assert min(peaks["unmerged"], peaks["merged"]) > 2 * max(peaks["bundle"], peaks["last release"])


def test_torch_answers_greedily_up_to_the_stop_token(tiny_checkpoint: Path, calls: list[CallPrompt]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = calls[0].tokens
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        expected = list(prompt)
        for _ in range(8):  # without a cache
            expected.append(int(plain(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
        expected = expected[len(prompt) :]
        model = Torch(tiny_checkpoint, None, threads=1)
        whole = Call(calls[0].utterance, prompt, stop=max(expected) + 1, max_new_tokens=8)
        assert model.answer(whole) == Said(expected, None)
        assert model.answer(replace(whole, max_new_tokens=5)).tokens == expected[:5]
        stopped = expected[: expected.index(expected[2]) + 1]
        assert model.answer(replace(whole, stop=expected[2])).tokens == stopped


def interfere(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, code: str) -> None:
    """Run something at the start of every contender's process of a kind."""
    lines = "\n".join(f"    {line}" for line in code.splitlines())
    (folder / "sitecustomize.py").write_text(f"import sys\nif {kind!r} in sys.orig_argv:\n{lines}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


SLOWED = f"""\
import time
from runtime.decoder import Decoder
feed, held = Decoder.feed, b"x" * {MEGABYTES}
def slow(self, tokens):
    time.sleep(0.05)
    print("what a library says on the way is no reply")
    return feed(self, tokens)
Decoder.feed = slow"""


def test_a_bundle_slowed_by_a_sleep_and_fattened_has_grown_since_the_baseline(
    report: tuple[LatencyReport, list[tuple[int, int]]],
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    calls: list[CallPrompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = report[0]
    interfere(monkeypatch, tmp_path, "bundle", SLOWED)
    contenders = (
        Contender("unmerged", "merged", tiny_checkpoint),
        Contender("bundle", "bundle", tiny_bundle),
    )
    slowed = measure_latency(contenders, (8, 32), 3, 3, calls, OWN, 8, 1)
    checks = against_baseline(
        replace(RELEASE, latency=good), RELEASE.parity, RELEASE.task, slowed, Limits(DEFAULTS["fp32"])
    )
    assert slowed.footprints["bundle"].peak_bytes > good.footprints["bundle"].peak_bytes + 0.9 * MEGABYTES
    assert {(check.name, check.at) for check in checks if check.verdict == "fail"} == {
        ("max_ttft_growth", "8"),
        ("max_token_growth", "8"),
        ("max_ttft_growth", "32"),
        ("max_token_growth", "32"),
        ("max_call_growth", ""),
        ("max_peak_growth", ""),
    }


def test_a_contender_that_stops_is_named_with_its_reason(tmp_path: Path, calls: list[CallPrompt]) -> None:
    with pytest.raises(StageError, match=r'latency: the contender "bundle" stopped: .* is not a bundle'):
        measure_latency((Contender("bundle", "bundle", tmp_path),), (8,), 3, 3, calls, OWN, 8, 1)


def test_a_contender_that_stops_half_way_is_named_too(tiny_bundle: Path, calls: list[CallPrompt]) -> None:
    contenders = (Contender("unmerged", "bundle", tiny_bundle),)
    with pytest.raises(StageError, match='"unmerged" stopped: 300 tokens do not fit the context'):
        measure_latency(contenders, (8, 300), 3, 3, calls, OWN, 8, 1)


def test_a_contender_that_is_killed(
    tiny_bundle: Path, calls: list[CallPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(monkeypatch, tmp_path, "bundle", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(StageError, match='"bundle" was killed, as happens when memory runs out'):
        measure_latency((Contender("bundle", "bundle", tiny_bundle),), (8,), 3, 3, calls, OWN, 8, 1)


def test_a_contender_that_hangs(
    tiny_bundle: Path, calls: list[CallPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time\nprint('waiting for a lock', file=sys.stderr, flush=True)\ntime.sleep(600)"
    interfere(monkeypatch, tmp_path, "bundle", code)
    monkeypatch.setattr("pipeline.evidence.worker.PATIENCE_S", 2.0)
    with pytest.raises(StageError, match='"bundle" has not answered for 2 s: waiting for a lock'):
        measure_latency((Contender("bundle", "bundle", tiny_bundle),), (8,), 3, 3, calls, OWN, 8, 1)


def test_two_contenders_of_one_name_are_refused(tiny_bundle: Path, calls: list[CallPrompt]) -> None:
    twice = (Contender("bundle", "bundle", tiny_bundle),) * 2
    with pytest.raises(UsageError, match='two contenders are named "bundle"'):
        measure_latency(twice, (8,), 3, 3, calls, OWN, 8, 1)


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert {"python", "onnxruntime", "torch", "llguidance"} <= set(machine.versions)
