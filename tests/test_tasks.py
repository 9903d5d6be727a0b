"""Several adapters on one base: switched, asked at once, added, removed, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from switchable import converted, peft_adapter, switchable_graph
from test_pages import linux, present

import runtime
from export.bundle import Description, package
from runtime.adapters import Adapter
from runtime.assistant import Assistant
from runtime.decoder import Decoder
from runtime.errors import BundleError, ExportError, TaskError
from runtime.growing_decoder import GrowingDecoder
from runtime.manifest import MANIFEST, verify
from runtime.tasks import Tasks

UTTERANCES = ["set the driver side to 22 degrees", "打开左后车窗", "x"]
TASKS = ("climate", "navigation")


@pytest.fixture(scope="module")
def exported(tiny_exported: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a switchable graph with its tokenizer."""
    folder = Path(shutil.copytree(tiny_exported, tmp_path_factory.mktemp("exported"), dirs_exist_ok=True))
    return switchable_graph(tiny_checkpoint, folder, "fp32", 256)


@pytest.fixture(scope="module")
def files(exported: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter for each of three tasks."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: converted(
            tiny_checkpoint,
            peft_adapter(tiny_checkpoint, folder / f"peft-{name}", seed, r=seed + 1),
            exported,
            exported,
            folder,
            name,
        )
        for seed, name in enumerate((*TASKS, "media"), start=1)
    }


@pytest.fixture(scope="module")
def bundle(
    exported: Path,
    files: dict[str, Path],
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle with two of the three. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    package(exported, out, tiny_tools_file, tiny_description, [files[name] for name in reversed(TASKS)])
    return out


@pytest.fixture
def assistant(bundle: Path) -> Assistant:
    return runtime.load(bundle, threads=1)


def tokens(assistant: Assistant, utterance: str, task: str | None) -> tuple[int, ...]:
    return assistant.answer(utterance, 12, constrained=False, task=task).tokens


def bits(assistant: Assistant, task: str | None) -> bytes:
    """The logits behind an utterance, after whatever was asked before."""
    assistant.use(task)
    assistant.answer(UTTERANCES[0], 3)
    return assistant.decoder.feed([7]).tobytes()


def test_the_manifest_lists_the_adapters(bundle: Path, files: dict[str, Path]) -> None:
    manifest = verify(bundle)
    assert manifest.adapters is not None
    assert [entry.name for entry in manifest.adapters] == sorted(TASKS)
    for entry in manifest.adapters:
        record = json.loads(files[entry.name].with_suffix(".json").read_text(encoding="utf-8"))
        assert (entry.sha256, entry.rank) == (record["sha256"], record["rank"])
        assert (bundle / entry.file).read_bytes() == files[entry.name].read_bytes()


def test_there_and_back_to_the_bit(assistant: Assistant, bundle: Path, tiny_bundle: Path) -> None:
    """Each task answers as in an assistant that was never asked anything else, the base as its own bundle."""
    fresh = {task: bits(runtime.load(bundle, threads=1), task) for task in (None, *TASKS)}
    assert len(set(fresh.values())) == 3
    assert fresh[None] == bits(runtime.load(tiny_bundle, threads=1), None)
    for task in (None, "climate", "navigation", "climate", None, "navigation", None):
        assert bits(assistant, task) == fresh[task]


def test_a_named_task_is_for_one_answer(assistant: Assistant) -> None:
    assistant.use("climate")
    by_use = assistant.answer(UTTERANCES[0], 12, constrained=False).tokens
    assert tokens(assistant, UTTERANCES[0], "navigation") != by_use
    assert assistant.answer(UTTERANCES[0], 12, constrained=False).tokens == by_use
    assert tokens(assistant, UTTERANCES[0], None) != by_use
    assert assistant.decoder.adapter is not None
    assert assistant.decoder.adapter.name == "climate"


def test_a_switch_is_in_the_timing_and_only_the_first_costs(assistant: Assistant) -> None:
    def computed(task: str | None) -> int:
        timing = assistant.answer(UTTERANCES[0], 2, task=task).timing
        assert timing.prefix_tokens < timing.prompt_tokens
        return timing.prefix_tokens

    assert computed(None) == 0  # computed while loading
    first = computed("climate")
    assert first > 0
    assert [computed(task) for task in ("climate", "navigation", "climate", None, "navigation")] == [
        0, first, 0, 0, 0,
    ]  # fmt: skip
    assistant.use("climate")
    assistant.decoder.reset()
    assert computed("climate") == first


def test_streams_of_two_tasks_do_not_touch_each_other(assistant: Assistant) -> None:
    messages = assistant.messages(UTTERANCES[0])
    alone = {task: list(assistant.generate(messages, 20, task=task)) for task in (None, *TASKS)}
    assert len({tuple(pieces) for pieces in alone.values()}) == 3
    streams = {task: assistant.generate(messages, 20, task=task) for task in alone}
    found: dict[str | None, list[str]] = {task: [] for task in alone}
    for _ in range(max(map(len, alone.values()))):
        for task, stream in streams.items():
            found[task] += [piece for piece in [next(stream, None)] if piece is not None]
    assert found == alone


def test_a_stream_keeps_the_task_it_was_begun_with(assistant: Assistant) -> None:
    messages = assistant.messages(UTTERANCES[0])
    expected = list(assistant.generate(messages, 20, task="climate"))
    assistant.use("climate")
    stream = assistant.generate(messages, 20)
    assistant.use("navigation")
    assert list(stream) == expected


def test_many_threads_get_what_one_would(assistant: Assistant, files: dict[str, Path]) -> None:
    """Answers of every task from several threads, while a task comes and goes."""
    asked = [(utterance, task) for utterance in UTTERANCES for task in (None, *TASKS)] * 4
    expected = [tokens(assistant, *one) for one in asked]
    done = Event()

    def come_and_go() -> int:
        rounds = 0
        while not done.is_set() or rounds == 0:
            assert assistant.add(files["media"]) == "media"
            tokens(assistant, "x", "media")
            assistant.remove("media")
            rounds += 1
        return rounds

    with ThreadPoolExecutor(5) as pool:
        coming = pool.submit(come_and_go)
        try:
            found = list(pool.map(lambda one: tokens(assistant, *one), asked))
        finally:
            done.set()
        assert coming.result() > 0
    assert found == expected
    assert assistant.tasks == TASKS


def test_adapters_come_and_go(assistant: Assistant, files: dict[str, Path]) -> None:
    before = {task: bits(assistant, task) for task in (None, *TASKS)}
    assert assistant.add(files["media"]) == "media"
    assert assistant.tasks == ("climate", "media", "navigation")
    added = bits(assistant, "media")
    assert added not in before.values()
    assistant.use("climate")
    assistant.remove("media")
    with pytest.raises(TaskError, match='no task "media"; the tasks of this bundle: climate, navigation'):
        assistant.use("media")
    assert {task: bits(assistant, task) for task in (None, *TASKS)} == before
    assistant.add(str(files["media"]))
    assert bits(assistant, "media") == added


def test_an_adapter_may_lose_its_file(assistant: Assistant, files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("media.onnx_adapter", "media.json"):
        shutil.copyfile(files["media"].with_name(name), tmp_path / name)
    assistant.add(tmp_path / "media.onnx_adapter")
    before = bits(assistant, "media")
    assistant.use(None)  # the factors leave memory, and come back from a file that has no name any more
    (tmp_path / "another").write_bytes(b"")
    (tmp_path / "another").replace(tmp_path / "media.onnx_adapter")
    assert bits(assistant, "media") == before
    (tmp_path / "media.onnx_adapter").unlink()
    assistant.use(None)
    assert bits(assistant, "media") == before


def bound(assistant: Assistant, task: str) -> Adapter:
    decoder = assistant._tasks.lane(task).decoder
    assert isinstance(decoder, Decoder)
    assert decoder.adapter is not None
    return decoder.adapter


def resident(assistant: Assistant, task: str) -> int:
    """Bytes of a task's adapter file that have memory in this process."""
    adapter = bound(assistant, task)
    assert adapter.pages is not None
    assert adapter.values
    whole = np.frombuffer(adapter.pages, np.uint8)
    assert all(np.shares_memory(values, whole) for values in adapter.values.values())
    return present(whole)


@linux
def test_factors_take_memory_while_their_task_is_in_use_or_answers(assistant: Assistant) -> None:
    def held() -> list[bool]:
        return [resident(assistant, task) > 0 for task in TASKS]

    assert held() == [False, False]  # read once, for values that are not finite
    before = {task: bits(assistant, task) for task in (None, *TASKS)}
    assert held() == [False, True]
    assistant.use("climate")
    assert held() == [False, False]
    assert bits(assistant, "climate") == before["climate"]
    assert held() == [True, False]
    assert tokens(assistant, UTTERANCES[0], "navigation")
    assert held() == [True, False]
    stream = assistant.generate(assistant.messages("x"), 20, task="navigation")
    next(stream)
    assert held() == [True, True]
    assistant.use(None)
    assert held() == [False, True]
    del stream
    assert held() == [False, False]
    assert {task: bits(assistant, task) for task in (None, *TASKS)} == before


def test_factors_may_leave_while_they_are_read(assistant: Assistant) -> None:
    expected = tokens(assistant, UTTERANCES[0], "climate")
    adapter = bound(assistant, "climate")
    with ThreadPoolExecutor(1) as pool:
        asked = [pool.submit(tokens, assistant, UTTERANCES[0], "climate") for _ in range(8)]
        while not all(answer.done() for answer in asked):
            adapter.rest()
    assert {answer.result() for answer in asked} == {expected}


def test_the_same_adapter_under_two_names_stays_while_one_is_in_use(
    assistant: Assistant, files: dict[str, Path], tmp_path: Path
) -> None:
    record = json.loads(files["climate"].with_suffix(".json").read_text(encoding="utf-8"))
    (tmp_path / "again.json").write_text(json.dumps(record | {"name": "again"}), encoding="utf-8")
    shutil.copyfile(files["climate"], tmp_path / "again.onnx_adapter")
    assistant.add(tmp_path / "again.onnx_adapter")
    assistant.use("climate")
    assert tokens(assistant, "x", "again") == tokens(assistant, "x", "climate")
    if sys.platform == "linux":
        assert resident(assistant, "climate") > 0
    assistant.remove("again")
    assert tokens(assistant, "x", "climate")


def test_a_task_in_use_is_not_removed(assistant: Assistant) -> None:
    assistant.use("climate")
    with pytest.raises(TaskError, match="is in use; use another or None"):
        assistant.remove("climate")
    assistant.use(None)
    stream = assistant.generate(assistant.messages("x"), 20, task="climate")
    next(stream)
    with pytest.raises(TaskError, match="is answering"):
        assistant.remove("climate")
    list(stream)
    assistant.remove("climate")
    assert assistant.tasks == ("navigation",)


def test_a_stream_that_is_dropped_frees_its_task(assistant: Assistant) -> None:
    stream = assistant.generate(assistant.messages("x"), 20, task="climate")
    next(stream)
    del stream
    assistant.remove("climate")


def test_a_task_removed_before_its_stream_was_read(assistant: Assistant) -> None:
    stream = assistant.generate(assistant.messages("x"), 20, task="climate")
    assistant.remove("climate")
    with pytest.raises(TaskError, match='no task "climate"'):
        next(stream)


@pytest.mark.parametrize(
    "ask",
    [
        lambda assistant: assistant.use("weather"),
        lambda assistant: assistant.remove("weather"),
        lambda assistant: assistant.call("x", task="weather"),
        lambda assistant: assistant.answer("x", task="weather"),
        lambda assistant: assistant.generate(assistant.messages("x"), task="weather"),
    ],
)
def test_an_unknown_task_offers_the_known(assistant: Assistant, ask: Callable[[Assistant], object]) -> None:
    with pytest.raises(
        TaskError, match='no task "weather"; the tasks of this bundle: climate, navigation'
    ) as caught:
        ask(assistant)
    assert caught.value.exit_code == 2


def test_two_tasks_of_one_name(
    assistant: Assistant,
    exported: Path,
    files: dict[str, Path],
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    with pytest.raises(TaskError, match='there is a task "climate" already'):
        assistant.add(files["climate"])
    with pytest.raises(TaskError, match="two adapters are for climate"):
        package(exported, tmp_path / "bundle", tiny_tools_file, tiny_description, [files["climate"]] * 2)
    assert list(tmp_path.iterdir()) == []


def test_a_merged_bundle_has_no_tasks(tiny_bundle: Path, files: dict[str, Path]) -> None:
    merged = runtime.load(tiny_bundle, threads=1)
    assert merged.tasks == ()
    with pytest.raises(TaskError, match="takes no adapters"):
        merged.add(files["media"])
    with pytest.raises(TaskError, match="the tasks of this bundle: none"):
        merged.use("climate")


def test_a_cache_that_grows_takes_no_adapters(tiny_growing: Path) -> None:
    tasks = Tasks(GrowingDecoder(tiny_growing, 32, 467, threads=1))
    with pytest.raises(TaskError, match="takes no other"):
        tasks.add(Adapter("climate", "0" * 64, 1, "0" * 64, {}, None))


def test_a_merged_graph_is_packaged_without_adapters(
    tiny_exported: Path,
    files: dict[str, Path],
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    with pytest.raises(ExportError, match=r"has no adapter_sites\.json"):
        package(tiny_exported, tmp_path / "bundle", tiny_tools_file, tiny_description, [files["media"]])


def test_a_bundle_may_begin_without_a_task(
    exported: Path,
    files: dict[str, Path],
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    package(exported, tmp_path / "bundle", tiny_tools_file, tiny_description)
    assistant = runtime.load(tmp_path / "bundle", threads=1)
    assert assistant.tasks == ()
    assistant.add(files["media"])
    assert assistant.tasks == ("media",)


def edited(bundle: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    copy = Path(shutil.copytree(bundle, out))
    value = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    change(value)
    (copy / MANIFEST).write_text(json.dumps(value), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(adapters=None), "adapters must be a list"),
        (lambda m: m.update(exporter="optimum"), "the exporter optimum writes no graph that takes any"),
        (lambda m: m["files"].pop("adapter_sites.json"), r"lists no adapter_sites\.json"),
        (lambda m: m["files"].pop("adapters/climate.json"), r"lists no adapters/climate\.json"),
        (lambda m: m["adapters"].append(m["adapters"][0]), "climate is there twice"),
        (lambda m: m["adapters"][0].update(name="a b"), "a name must be of letters"),
        (lambda m: m["adapters"][0].update(file="tools.json"), "needs a .onnx_adapter file that is listed"),
        (
            lambda m: m["adapters"][0].update(file="../x.onnx_adapter"),
            "needs a .onnx_adapter file that is listed",
        ),
        (lambda m: m["adapters"][0].update(sha256="0" * 64), "two digests"),
        (lambda m: m["adapters"][0].update(rank=0), "needs a rank"),
        (lambda m: m["adapters"][0].update(belongs_to="x"), "the digest of what it belongs to"),
        (lambda m: m["adapters"][0].update(rank=3), "record of adapters/climate.onnx_adapter differ"),
        (
            lambda m: m["adapters"][0].update(belongs_to="0" * 64),
            "record of adapters/climate.onnx_adapter differ",
        ),
        (lambda m: m["adapters"][0].update(name="weather"), "record of adapters/climate.onnx_adapter differ"),
    ],
)
def test_wrong_adapters_in_the_manifest(
    change: Callable[[dict[str, Any]], object], said: str, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=said):
        runtime.load(edited(bundle, tmp_path / "bundle", change), threads=1)


def test_a_changed_adapter_is_refused_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    raw = bytearray((copy / "adapters" / "climate.onnx_adapter").read_bytes())
    raw[-1] ^= 1
    (copy / "adapters" / "climate.onnx_adapter").write_bytes(raw)
    with pytest.raises(BundleError) as refused:
        runtime.load(copy, threads=1)
    assert refused.value.problems == ("adapters/climate.onnx_adapter was changed",)


def test_admission_keeps_the_adapters(bundle: Path, tmp_path: Path) -> None:
    from test_bundle import gate

    from export.bundle import admit

    written = admit(bundle, tmp_path / "bundle", gate("pass"), {})
    assert written.adapters == verify(bundle).adapters
    assert runtime.load(tmp_path / "bundle", threads=1).tasks == TASKS


def test_the_command_line_asks_a_task(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime.__main__ import main

    assert main([str(bundle), "--verify"]) == 0
    assert "tasks: climate, navigation" in capsys.readouterr().out
    assert main([str(bundle), "x", "--task", "weather", "--threads", "1"]) == 2
    assert "the tasks of this bundle: climate, navigation" in capsys.readouterr().err
    code = main([str(bundle), "x", "--task", "climate", "--threads", "1", "--max-new-tokens", "1"])
    assert code == 2
    assert "cut off after 1 tokens" in capsys.readouterr().err
