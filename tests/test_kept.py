"""What the runtime keeps from one load to the next: used while it is what it was, or made again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtime
import runtime.files
from runtime import kept, packed, verified
from runtime.errors import BundleError, UsageError
from runtime.manifest import MANIFEST

UTTERANCE = "set the driver side to 22 degrees"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that nobody touched for a while."""
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    copy = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    time.sleep(0.02)  # the clock that stamps files ticks every few milliseconds
    return copy


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    names: list[str] = []
    digest = runtime.files.digest

    def noted(path: Path) -> str:
        names.append(path.name)
        return digest(path)

    monkeypatch.setattr(runtime.files, "digest", noted)
    return names


def logits(bundle: Path, cache: Path | None) -> bytes:
    return runtime.load(bundle, threads=1, cache=cache).decoder.feed([5, 6, 7]).tobytes()


def graphs(cache: Path) -> list[Path]:
    return sorted(cache.glob("packed-*/model.onnx"))


def test_a_bundle_is_hashed_once(bundle: Path, cache: Path, hashed: list[str]) -> None:
    runtime.load(bundle, threads=1, cache=cache)
    assert len(hashed) == len(runtime.load(bundle, threads=1, cache=cache).manifest.files)


def test_without_a_cache_a_bundle_is_hashed_at_every_load(bundle: Path, hashed: list[str]) -> None:
    files = [len(runtime.load(bundle, threads=1).manifest.files) for _ in range(2)]
    assert len(hashed) == sum(files) > 0


def overwrite(path: Path) -> None:
    """Another byte in the middle, and every time that can be set put back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)
        file.seek(status.st_size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    overwrite(other)
    other.replace(path)


@pytest.mark.parametrize("change", [overwrite, replace], ids=["overwritten", "replaced"])
@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "tokenizer.json", "tools.json"])
def test_a_file_that_was_changed_is_noticed(
    bundle: Path, cache: Path, name: str, change: Callable[[Path], None]
) -> None:
    runtime.load(bundle, threads=1, cache=cache)
    change(bundle / name)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        runtime.load(bundle, threads=1, cache=cache)


def test_a_file_that_was_added_or_taken_away_is_noticed(bundle: Path, cache: Path) -> None:
    runtime.load(bundle, threads=1, cache=cache)
    (bundle / "more").write_text("x")
    with pytest.raises(BundleError, match="more is not listed"):
        runtime.load(bundle, threads=1, cache=cache)
    (bundle / "more").unlink()
    (bundle / "tools.json").unlink()
    with pytest.raises(BundleError, match=r"tools\.json is missing"):
        runtime.load(bundle, threads=1, cache=cache)
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError):
        runtime.load(bundle, threads=1, cache=cache)


def test_another_manifest_is_hashed_again(bundle: Path, cache: Path, hashed: list[str]) -> None:
    runtime.load(bundle, threads=1, cache=cache)
    text = json.loads((bundle / MANIFEST).read_text())
    text["files"]["tools.json"]["sha256"] = "0" * 64
    (bundle / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(BundleError, match=r"tools\.json was changed"):
        runtime.load(bundle, threads=1, cache=cache)


def test_a_file_that_was_changed_a_moment_ago_is_hashed_again(
    tiny_bundle: Path, tmp_path: Path, cache: Path, hashed: list[str]
) -> None:
    fresh = shutil.copytree(tiny_bundle, tmp_path / "fresh")
    count = len(runtime.load(fresh, threads=1, cache=cache).manifest.files)
    runtime.load(fresh, threads=1, cache=cache)
    assert len(hashed) == 2 * count


def test_packed_weights_compute_the_same(bundle: Path, cache: Path) -> None:
    plain = logits(bundle, None)
    assert [logits(bundle, cache) for _ in range(2)] == [plain, plain]
    [graph] = graphs(cache)
    assert {path.name for path in graph.parent.iterdir()} == {"model.onnx", "model.onnx.data", "packed.json"}
    assert not list(cache.glob(".partial-*"))


def test_the_packed_graph_is_what_is_opened(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.load(bundle, threads=1, cache=cache)
    made = graphs(cache)[0].stat().st_mtime_ns
    opened: list[Path] = []
    original = runtime.decoder.open_session  # type: ignore[attr-defined]

    def noted(path: Path, *args: object, **more: object) -> object:
        opened.append(path)
        return original(path, *args, **more)

    monkeypatch.setattr("runtime.decoder.open_session", noted)
    runtime.load(bundle, threads=1, cache=cache)
    assert opened == graphs(cache)
    assert graphs(cache)[0].stat().st_mtime_ns == made


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("damage", ["overwritten", "cut", "gone"])
def test_damaged_packed_weights_are_made_again(bundle: Path, cache: Path, name: str, damage: str) -> None:
    plain = logits(bundle, cache)
    path = graphs(cache)[0].with_name(name)
    before = path.read_bytes()
    if damage == "overwritten":
        overwrite(path)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    assert logits(bundle, cache) == plain
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_read_is_none(bundle: Path, cache: Path) -> None:
    plain = logits(bundle, cache)
    for record in [*cache.glob("packed-*/packed.json"), *cache.glob("verified-*.json")]:
        record.write_bytes(b"\xff{")
    assert logits(bundle, cache) == plain


@pytest.mark.parametrize("what", ["processor", "onnxruntime", "weights"])
def test_weights_packed_for_something_else_are_not_used(
    bundle: Path, cache: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(bundle, cache)
    first = graphs(cache)
    if what == "processor":
        monkeypatch.setattr(packed, "processor", lambda: ["another one"])
    elif what == "onnxruntime":
        monkeypatch.setattr("onnxruntime.get_build_info", lambda: "another one")
    digests = ("another",) if what == "weights" else ("same",)
    assert packed.packed_graph(cache, bundle, digests) not in (None, *first)
    # What was packed of this bundle before is of no use any more.
    assert len(graphs(cache)) == 1


def test_bundles_side_by_side_keep_their_own(bundle: Path, cache: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    logits(bundle, cache)
    packed.packed_graph(cache, other, ("another",))
    assert len(graphs(cache)) == 2


def test_the_processor_is_known() -> None:
    found = packed.processor()
    assert len(found) >= 3
    if Path("/proc/cpuinfo").exists():
        assert any(line.startswith(("flags:", "Features:")) for line in found)
    assert found == packed.processor()


def test_a_full_disk_costs_time_and_nothing_else(
    bundle: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_pack", full)
    monkeypatch.setattr(verified, "keep", full)
    with caplog.at_level(logging.WARNING):
        assert logits(bundle, cache) == logits(bundle, None)
    assert len([record for record in caplog.records if "No space left" in record.message]) == 2
    assert not graphs(cache)
    assert not list(cache.glob(".partial-*"))


def test_two_processes_may_begin_at_once(bundle: Path, cache: Path) -> None:
    program = (
        "import runtime, sys; assistant = runtime.load(sys.argv[1], threads=1, cache=sys.argv[2]); "
        "print(assistant.decoder.feed([5, 6, 7]).tobytes().hex())"
    )
    command = [sys.executable, "-c", program, str(bundle), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert answers == {logits(bundle, None).hex()}
    assert len(graphs(cache)) == 1


def test_only_a_directory_of_ones_own_is_a_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(UsageError, match="only you may be able to write to it"):
        runtime.load(bundle, threads=1, cache=shared)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be used as a cache"):
        runtime.load(bundle, threads=1, cache=tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="cannot be used as a cache"):
        kept.own_directory(tmp_path / "mine")


def test_a_kept_value_is_whole_or_not_there(tmp_path: Path) -> None:
    place = tmp_path / "value.json"
    kept.keep(place, {"a": 1})
    with pytest.raises(TypeError):
        kept.keep(place, {"a": np.zeros(1)})
    assert kept.read_kept(place) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
    assert kept.read_kept(tmp_path / "none.json") is None
