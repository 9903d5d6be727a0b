"""The prefix on disk: the same answers to the bit, and whatever is not exactly it is computed anew."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from switchable import converted, peft_adapter, switchable_graph

import runtime
from export.bundle import Description, package
from runtime import prefix_cache
from runtime.assistant import Assistant
from runtime.decoder import Decoder
from runtime.growing_decoder import GrowingDecoder

UTTERANCE = "set the driver side to 22 degrees"


def bits(assistant: Assistant) -> bytes:
    assistant.answer(UTTERANCE, 3)
    return assistant.decoder.feed([7]).tobytes()


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run of a model was given."""
    found: list[int] = []
    for kind in (Decoder, GrowingDecoder):
        feed = kind.feed
        monkeypatch.setattr(
            kind,
            "feed",
            lambda self, tokens, feed=feed: (found.append(len(tokens)), feed(self, tokens))[1],
        )
    return found


@pytest.fixture(scope="module")
def growing_bundle(
    tiny_growing: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("growing_bundle") / "bundle"
    package(tiny_growing, out, tiny_tools_file, dataclasses.replace(tiny_description, exporter="optimum"))
    return out


@pytest.mark.parametrize("kind", ["tiny_bundle", "growing_bundle"])
def test_a_later_start_computes_no_prefix_and_answers_the_same_to_the_bit(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, fed: list[int]
) -> None:
    bundle: Path = request.getfixturevalue(kind)
    expected = bits(runtime.load(bundle, threads=1))
    fed.clear()
    first = runtime.load(bundle, threads=1, cache=tmp_path / "new" / "folder")
    assert len(fed) == 1
    assert bits(first) == expected
    assert prefixes(tmp_path / "new" / "folder") == ["tiny.base.prefix"]
    fed.clear()
    again = runtime.load(bundle, threads=1, cache=tmp_path / "new" / "folder")
    assert fed == []
    assert bits(again) == expected
    assert again.answer(UTTERANCE, 1).timing.prefix_tokens == 0


def prefixes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.prefix"))


def test_without_a_folder_nothing_is_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runtime.load(tiny_bundle, threads=1)
    assert list(tmp_path.iterdir()) == []


def flipped(at: int) -> Callable[[bytes], bytes]:
    def flip(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[at] ^= 1
        return bytes(changed)

    return flip


@pytest.mark.parametrize(
    "damage",
    [flipped(0), flipped(40), flipped(-1), lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: b""],
)
def test_a_damaged_file_is_computed_anew_and_written_over(
    damage: Callable[[bytes], bytes], tiny_bundle: Path, tmp_path: Path, fed: list[int]
) -> None:
    expected = bits(runtime.load(tiny_bundle, threads=1, cache=tmp_path))
    file = tmp_path / "tiny.base.prefix"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    fed.clear()
    assistant = runtime.load(tiny_bundle, threads=1, cache=tmp_path)
    assert len(fed) == 1
    assert bits(assistant) == expected
    assert file.read_bytes() == whole
    assert prefixes(tmp_path) == [file.name]


def test_another_onnxruntime_or_processor_computes_anew(
    tiny_bundle: Path, tmp_path: Path, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.load(tiny_bundle, threads=1, cache=tmp_path)
    for change in (
        lambda: monkeypatch.setattr(prefix_cache, "processor", lambda: ["another"]),
        lambda: monkeypatch.setattr("onnxruntime.__version__", "99.1.0"),
    ):
        fed.clear()
        runtime.load(tiny_bundle, threads=1, cache=tmp_path)
        assert fed == []
        change()
        runtime.load(tiny_bundle, threads=1, cache=tmp_path)
        assert len(fed) == 1


def test_a_bundle_of_the_same_name_computes_anew(
    tiny_bundle: Path,
    tiny_exported: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
    fed: list[int],
) -> None:
    """Other weights, and another system prompt: each bundle answers as without the folder."""
    exported = Path(shutil.copytree(tiny_exported, tmp_path / "exported"))
    data = bytearray((exported / "model.onnx.data").read_bytes())
    data[2::4] = bytes(byte ^ 0x40 for byte in data[2::4])  # every weight half as much more or less
    (exported / "model.onnx.data").write_bytes(data)
    package(exported, tmp_path / "weights", tiny_tools_file, tiny_description)
    system = dataclasses.replace(tiny_description, system="Answer with calls of functions, please.")
    package(tiny_exported, tmp_path / "system", tiny_tools_file, system)
    bundles = [tiny_bundle, tmp_path / "weights", tmp_path / "system"]
    alone = [bits(runtime.load(bundle, threads=1)) for bundle in bundles]
    assert len(set(alone)) == 3
    for _ in range(2):
        for bundle, expected in zip(bundles, alone, strict=True):
            fed.clear()
            assistant = runtime.load(bundle, threads=1, cache=tmp_path / "cache")
            assert len(fed) == 1
            assert bits(assistant) == expected
    assert len(prefixes(tmp_path / "cache")) == 1


def test_each_adapter_has_a_file_of_its_own(
    tiny_checkpoint: Path,
    tiny_exported: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
    fed: list[int],
) -> None:
    graph = Path(shutil.copytree(tiny_exported, tmp_path / "exported"))
    switchable_graph(tiny_checkpoint, graph, "fp32", 256)
    adapters = [
        converted(
            tiny_checkpoint,
            peft_adapter(tiny_checkpoint, tmp_path / f"peft-{name}", seed, r=2),
            graph,
            graph,
            tmp_path,
            name,
        )
        for seed, name in enumerate(("climate", "navigation"))
    ]
    package(graph, tmp_path / "bundle", tiny_tools_file, tiny_description, adapters)

    def every(assistant: Assistant) -> list[bytes]:
        found = []
        for task in (None, "climate", "navigation"):
            assistant.use(task)
            found.append(bits(assistant))
        return found

    expected = every(runtime.load(tmp_path / "bundle", threads=1))
    for _ in range(2):
        assert every(runtime.load(tmp_path / "bundle", threads=1, cache=tmp_path / "cache")) == expected
    assert len(prefixes(tmp_path / "cache")) == 3
    assistant = runtime.load(tmp_path / "bundle", threads=1, cache=tmp_path / "cache")
    fed.clear()
    timing = assistant.answer(UTTERANCE, 1, task="climate").timing
    assert timing.prefix_tokens == 0
    assert sum(fed) < timing.prompt_tokens + 3


def test_what_was_said_is_never_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """A conversation with another system prompt begins with other tokens than the bundle's."""
    assistant = runtime.load(tiny_bundle, threads=1, cache=tmp_path)
    before = (tmp_path / "tiny.base.prefix").read_bytes()
    conversation = [
        {"role": "user", "content": "my secret"},
        {"role": "assistant", "content": "is safe"},
        {"role": "user", "content": "is it"},
    ]
    list(assistant.generate(conversation, max_new_tokens=2))  # type: ignore[arg-type]
    assert (tmp_path / "tiny.base.prefix").read_bytes() == before
    assert prefixes(tmp_path) == ["tiny.base.prefix"]


def test_a_file_that_cannot_be_written_is_no_error(tiny_bundle: Path, tmp_path: Path) -> None:
    expected = bits(runtime.load(tiny_bundle, threads=1))
    (tmp_path / "cache" / "tiny.base.prefix").mkdir(parents=True)
    assert bits(runtime.load(tiny_bundle, threads=1, cache=tmp_path / "cache")) == expected
    assert list((tmp_path / "cache" / "tiny.base.prefix").iterdir()) == []
