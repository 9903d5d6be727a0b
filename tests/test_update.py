"""An adapter-only update: packaged, installed in one step, replaced, removed, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from switchable import peft_adapter, switchable_graph

import runtime
from export.bundle import Description, package
from export.weights import Checkpoint
from pipeline.adapter import read_adapter
from pipeline.delta import Made, delta
from pipeline.factors import factors
from pipeline.provenance import directory_files
from pipeline.stage import artifact, write_stage
from pipeline.training.record import TRAINING
from runtime.__main__ import main
from runtime.errors import AdapterError, BundleError, ExportError, GateError, TaskError, UsageError
from runtime.manifest import MANIFEST, verify
from runtime.report import Report, read_report, to_json
from runtime.sites import FactorType

ROOT = Path(__file__).parent.parent
FILE = {"sha256": "0" * 64, "size": 1}
UTTERANCE = "set the driver side to 22 degrees"


@dataclass(frozen=True)
class Workshop:
    """A switchable bundle without tasks, two adapters for its base, and an update made of each."""

    base: Path
    bundle: Path
    adapters: dict[str, Path]
    deltas: dict[str, Path]


def made(
    workshop: Workshop,
    out: Path,
    adapter: str = "climate",
    task: str | None = None,
    bundle: Path | None = None,
    replaces: bool = False,
    dtype: FactorType = "float32",
    report: Path | None = None,
) -> Path:
    """An update, as `cockpit package --adapter-for` makes it."""
    plan = delta(
        Made(
            artifact(bundle or workshop.bundle),
            artifact(workshop.adapters[adapter]),
            artifact(workshop.base),
            None if report is None else artifact(report),
        ),
        task or adapter,
        replaces,
        dtype,
    )
    write_stage(plan.stage, out, lambda folder, scratch: plan.work(folder, scratch, lambda *told: None))
    return out


@pytest.fixture(scope="module")
def workshop(
    tiny_exported: Path,
    tiny_checkpoint: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path_factory: pytest.TempPathFactory,
) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    exported = switchable_graph(
        tiny_checkpoint, Path(shutil.copytree(tiny_exported, folder / "exported")), "fp32", 256
    )
    package(exported, folder / "bundle", tiny_tools_file, tiny_description)
    adapters = {
        name: peft_adapter(tiny_checkpoint, folder / name, seed, r=seed + 1)
        for seed, name in enumerate(("climate", "navigation"), start=1)
    }
    found = Workshop(tiny_checkpoint, folder / "bundle", adapters, {})
    for name in adapters:
        found.deltas[name] = made(found, folder / f"delta-{name}", name)
    return found


@pytest.fixture
def bundle(workshop: Workshop, tmp_path: Path) -> Path:
    """A copy to install into."""
    return Path(shutil.copytree(workshop.bundle, tmp_path / "bundle"))


@pytest.fixture
def climate(workshop: Workshop, tmp_path: Path) -> Path:
    """A copy of an update that may be damaged."""
    return Path(shutil.copytree(workshop.deltas["climate"], tmp_path / "delta"))


def answers(assistant: runtime.Assistant, *tasks: str | None) -> list[tuple[int, ...]]:
    return [assistant.answer(UTTERANCE, 8, constrained=False, task=task).tokens for task in tasks]


def refusal(bundle: Path, update: Path, unproven: bool = True) -> str:
    """What is said; the bundle and what lies beside it are as before."""
    before, beside = directory_files(bundle), sorted(path.name for path in bundle.parent.iterdir())
    with pytest.raises(BundleError) as caught:
        runtime.install(bundle, update, unproven=unproven)
    assert caught.value.exit_code == 5
    assert directory_files(bundle) == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == beside
    return str(caught.value)


def edit(update: Path, change: Callable[[dict[str, Any]], object], name: str = "delta.json") -> None:
    value = json.loads((update / name).read_text(encoding="utf-8"))
    change(value)
    (update / name).write_text(json.dumps(value), encoding="utf-8")


def test_installed_in_any_order_and_removed(workshop: Workshop, bundle: Path, tmp_path: Path) -> None:
    """The second update was made for the bundle as it was before the first."""
    plain = verify(bundle)
    for name, update in workshop.deltas.items():
        runtime.install(bundle, update, unproven=True)
        assert name in runtime.load(bundle, threads=1).tasks
    assistant = runtime.load(bundle, threads=1)
    assert assistant.tasks == ("climate", "navigation")
    assert len(set(answers(assistant, None, *assistant.tasks))) == 3
    for entry in verify(bundle).adapters or ():
        assert (entry.proof, entry.gate) == ("none", None)
        assert entry.lineage is not None
        assert entry.lineage.adapter == artifact(workshop.adapters[entry.name]).digest
    runtime.uninstall(bundle, "climate")
    assert runtime.load(bundle, threads=1).tasks == ("navigation",)
    assert runtime.uninstall(bundle, "navigation") == plain
    assert directory_files(bundle) == directory_files(workshop.bundle)
    with pytest.raises(TaskError, match='no task "climate"; the tasks of this bundle: none'):
        runtime.uninstall(bundle, "climate")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_an_update_is_small_and_says_what_it_is_for(workshop: Workshop) -> None:
    update = workshop.deltas["climate"]
    said = json.loads((update / "delta.json").read_text(encoding="utf-8"))
    assert set(said["files"]) == {"climate.onnx_adapter", "climate.json"}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "tools.json"} <= set(said["target"]["files"])
    assert said["gate"] is None
    assert said["lineage"]["versions"].keys() == {"cockpit-edge", "numpy", "onnxruntime"}


def test_an_open_assistant_is_not_disturbed(workshop: Workshop, bundle: Path) -> None:
    runtime.install(bundle, workshop.deltas["climate"], unproven=True)
    assistant = runtime.load(bundle, threads=1)
    before = answers(assistant, None, "climate")
    stream = assistant.generate(assistant.messages(UTTERANCE), 8, task="climate")
    first = next(stream)
    runtime.install(bundle, workshop.deltas["navigation"], unproven=True)
    runtime.uninstall(bundle, "climate")
    text = first + "".join(stream)
    assert text == "".join(assistant.generate(assistant.messages(UTTERANCE), 8, task="climate"))
    assert answers(assistant, None, "climate") == before
    assistant.decoder.score([5, 6])  # opens head.onnx now
    assert assistant.tasks == ("climate",)


def test_again_changes_nothing(workshop: Workshop, bundle: Path) -> None:
    first = runtime.install(bundle, workshop.deltas["climate"], unproven=True)
    inode = bundle.stat().st_ino
    assert runtime.install(bundle, workshop.deltas["climate"]) == first
    assert bundle.stat().st_ino == inode


def test_a_name_that_exists_is_replaced_only_on_purpose(
    workshop: Workshop, bundle: Path, tmp_path: Path
) -> None:
    runtime.install(bundle, workshop.deltas["climate"], unproven=True)
    before = answers(runtime.load(bundle, threads=1), "climate")
    other = made(workshop, tmp_path / "other", "navigation", task="climate")
    assert 'has a task "climate" already' in refusal(bundle, other)
    with pytest.raises(UsageError, match="--replaces"):
        made(workshop, tmp_path / "no", "navigation", task="climate", bundle=bundle)
    newer = made(workshop, tmp_path / "newer", "navigation", task="climate", bundle=bundle, replaces=True)
    runtime.install(bundle, newer, unproven=True)
    assistant = runtime.load(bundle, threads=1)
    assert assistant.tasks == ("climate",)
    assert answers(assistant, "climate") != before


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_types(dtype: FactorType, workshop: Workshop, bundle: Path, tmp_path: Path) -> None:
    update = made(workshop, tmp_path / "small", dtype=dtype)
    small, large = (
        (folder / "climate.onnx_adapter").stat().st_size for folder in (update, workshop.deltas["climate"])
    )
    assert small < large
    runtime.install(bundle, update, unproven=True)
    assert runtime.load(bundle, threads=1).tasks == ("climate",)


def test_an_adapter_without_evidence_is_refused_unless_it_is_wanted(workshop: Workshop, bundle: Path) -> None:
    said = refusal(bundle, workshop.deltas["climate"], unproven=False)
    assert "has no evidence of its own" in said
    assert "--unproven" in said


def retarget(update: Path, name: str) -> None:
    edit(update, lambda said: said["target"]["files"].update({name: "0" * 64}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda update: retarget(update, "model.onnx.data"), "model.onnx.data is another"),
        (lambda update: retarget(update, "tokenizer.json"), "tokenizer.json is another"),
        (lambda update: retarget(update, "tools.json"), "tools.json is another"),
        (lambda update: retarget(update, "more.bin"), "the bundle has no more.bin"),
        (
            lambda update: edit(update, lambda said: said["target"]["files"].pop("head.onnx")),
            "the bundle has head.onnx as well",
        ),
        (
            lambda update: edit(update, lambda said: said["target"]["prompt"].update(system="Sing.")),
            "prompt.system is another",
        ),
        (
            lambda update: edit(update, lambda said: said["target"]["limits"].update(context=512)),
            "limits.context is another",
        ),
        (lambda update: edit(update, lambda said: said.update(task="a/b")), "task must be of letters"),
        (lambda update: edit(update, lambda said: said.update(format_version=2)), "format version 2"),
        (lambda update: edit(update, lambda said: said.update(more=1)), "more is not a known field"),
        (lambda update: edit(update, lambda said: said.pop("task")), "task is missing"),
        (lambda update: edit(update, lambda said: said.update(task="../x")), "lists no ../x.onnx_adapter"),
        (
            lambda update: edit(update, lambda said: said["files"].update({"a/../b": FILE})),
            "is not a plain path",
        ),
        (
            lambda update: edit(update, lambda said: said["files"].update(more=FILE)),
            "neither the adapter nor below reports/",
        ),
        (
            lambda update: edit(update, lambda said: said.update(gate={"verdict": "pass", "checks": []})),
            "gate has no checks",
        ),
        (
            lambda update: edit(update, lambda said: said.update(gate={"verdict": "fail", "checks": []})),
            "must be one of 'pass'",
        ),
        (lambda update: (update / "delta.json").write_text('{"format'), "is not valid JSON"),
        (lambda update: (update / "delta.json").unlink(), "is no update of a bundle"),
        (lambda update: (update / "more").touch(), "more is not listed in delta.json"),
        (lambda update: (update / "climate.json").unlink(), "climate.json is missing"),
        (
            lambda update: (update / "climate.onnx_adapter").write_bytes(
                (update / "climate.onnx_adapter").read_bytes()[:-8]
            ),
            "bytes instead of",
        ),
        (
            lambda update: (update / "climate.onnx_adapter").write_bytes(
                (update / "climate.onnx_adapter").read_bytes()[:-1] + b"\x55"
            ),
            "climate.onnx_adapter was changed",
        ),
    ],
)
def test_what_is_refused(change: Callable[[Path], object], said: str, climate: Path, bundle: Path) -> None:
    change(climate)
    assert said in refusal(bundle, climate)


def vouched(update: Path) -> None:
    """Let delta.json give the digests of what lies there."""
    files = directory_files(update, exclude=("delta.json", "stage.json"))
    edit(update, lambda said: said.update(files=files))


def test_a_rank_above_the_bundles(climate: Path, bundle: Path) -> None:
    edit(climate, lambda record: record.update(rank=9), "climate.json")
    vouched(climate)
    assert "its rank is 9; this graph takes 1 to 8" in refusal(bundle, climate)


def test_tensors_that_are_not_finite(workshop: Workshop, climate: Path, bundle: Path) -> None:
    import hashlib

    import numpy as np
    from onnxruntime import AdapterFormat, OrtValue

    file = climate / "climate.onnx_adapter"
    values = {
        name: np.array(value.numpy())
        for name, value in AdapterFormat.read_adapter(str(file)).get_parameters().items()
    }
    next(iter(values.values()))[0, 0] = np.nan
    changed = AdapterFormat()
    changed.set_adapter_version(1)
    changed.set_model_version(1)
    changed.set_parameters({name: OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    file.unlink()
    changed.export_adapter(str(file))
    raw = file.read_bytes()
    edit(
        climate,
        lambda record: record.update(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw)),
        "climate.json",
    )
    vouched(climate)
    assert "not finite" in refusal(bundle, climate)


def test_bundles_that_take_no_update(
    workshop: Workshop, tiny_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    merged = Path(shutil.copytree(tiny_bundle, tmp_path / "merged"))
    assert "takes no adapters" in refusal(merged, workshop.deltas["climate"])
    with pytest.raises(UsageError, match="takes no adapters"):
        made(workshop, tmp_path / "out", bundle=merged)
    (bundle / "tools.json").write_text("[]", encoding="utf-8")
    assert "tools.json has 2 bytes" in refusal(bundle, workshop.deltas["climate"])
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(UsageError, match="is a link"):
        runtime.install(tmp_path / "link", workshop.deltas["climate"])
    assert "it has no bundle.json" in refusal(tmp_path, workshop.deltas["climate"])


def test_packaging_refuses(workshop: Workshop, tiny_checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(BundleError, match="another tokenizer"):
        made(replace(workshop, base=other), tmp_path / "out")
    trained = Path(shutil.copytree(workshop.adapters["climate"], tmp_path / "trained"))
    (trained / TRAINING).write_text(json.dumps({"system": "Sing."}), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"another system prompt than the bundle has: 'Sing\.'"):
        made(replace(workshop, adapters={"climate": trained}), tmp_path / "out")
    large = peft_adapter(tiny_checkpoint, tmp_path / "large", 3, r=9)
    with pytest.raises(ExportError, match="has rank 9; the graph takes 1 to 8"):
        made(replace(workshop, adapters={"climate": large}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def reported(
    folder: Path, workshop: Workshop, bundle: Path, change: Callable[[Report], Report] = lambda report: report
) -> Path:
    """The report of a passed validation of a bundle, as `cockpit validate` would leave it."""
    from sample_report import admitted

    lineage = {
        "adapter": artifact(workshop.adapters["climate"]).digest,
        "base": artifact(workshop.base).digest,
        "bundle": artifact(bundle).digest,
    }
    folder.mkdir()
    found = change(replace(admitted(), lineage=lineage))
    (folder / "report.json").write_text(to_json(found), encoding="utf-8")
    (folder / "report.html").write_text("<p>evidence</p>", encoding="utf-8")
    return folder


def test_evidence_of_its_own(workshop: Workshop, bundle: Path, tmp_path: Path) -> None:
    trial = Path(shutil.copytree(workshop.bundle, tmp_path / "trial"))
    runtime.install(trial, workshop.deltas["climate"], unproven=True)
    report = reported(tmp_path / "report", workshop, trial)
    proven = made(workshop, tmp_path / "proven", report=report)
    manifest = runtime.install(bundle, proven)
    assert manifest.gate is None
    (entry,) = manifest.adapters or ()
    assert entry.proof == "own"
    assert entry.gate is not None
    checks = read_report(report / "report.json").gate.checks
    assert [check.name for check in entry.gate.checks] == [check.name for check in checks]
    evidence = bundle / "reports" / "adapters" / "climate" / "report.html"
    assert evidence.read_text(encoding="utf-8") == "<p>evidence</p>"
    assert runtime.load(bundle, threads=1).tasks == ("climate",)
    runtime.uninstall(bundle, "climate")
    assert directory_files(bundle) == directory_files(workshop.bundle)

    with pytest.raises(UsageError, match="the report is of another bundle"):
        made(workshop, tmp_path / "no", report=reported(tmp_path / "r1", workshop, bundle))
    other = reported(
        tmp_path / "r2", workshop, trial, lambda r: replace(r, lineage=r.lineage | {"adapter": "0" * 64})
    )
    with pytest.raises(UsageError, match="the report is of another adapter"):
        made(workshop, tmp_path / "no", report=other)
    failed = reported(
        tmp_path / "r3", workshop, trial, lambda r: replace(r, gate=replace(r.gate, verdict="fail"))
    )
    with pytest.raises(GateError, match="did not pass"):
        made(workshop, tmp_path / "no", report=failed)
    assert not (tmp_path / "no").exists()


def test_the_command_lines(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    bundle = Path(shutil.copytree(workshop.bundle, tmp_path / "bundle"))
    out = tmp_path / "navigation-2"
    given = ["--adapter", workshop.adapters["navigation"], "--base", workshop.base, "--task", "navigation"]
    arguments = ["package", "--adapter-for", bundle, *given, "--dtype", "float16", "--out", out]
    ran = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert main(["install", str(bundle), str(out)]) == 5
    assert "has no evidence of its own" in capsys.readouterr().err
    assert main(["install", str(bundle), str(out), "--unproven"]) == 0
    assert "tasks: navigation (unproven)" in capsys.readouterr().out
    assert main(["install", str(bundle), "--recover", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unproven"] == ["navigation"]
    assert main(["install", str(bundle), "--remove", "climate"]) == 2
    assert "the tasks of this bundle: navigation" in capsys.readouterr().err
    assert main(["install", str(bundle), "--remove", "navigation"]) == 0
    assert "tasks: none yet" in capsys.readouterr().out
    assert main(["install", str(bundle)]) == 2
    assert "--help says more" in capsys.readouterr().err
    for wrong, said in (
        (["package", "--adapter-for", bundle, "--out", "x"], "--adapter-for needs"),
        (["package", bundle, "--out", "x"], "or --adapter-for"),
        (["package", bundle, "--tools", bundle, "--task", "x", "--out", "x"], "go with --adapter-for"),
    ):
        with pytest.raises(UsageError, match=said):
            CliRunner().invoke(app, list(map(str, wrong)), catch_exceptions=False)


BA_ALONE = {
    "an update": (lambda w: w.deltas["climate"], r"is an update of a bundle, and an adapter is no model"),
    "a PEFT folder": (lambda w: w.adapters["climate"], r"is a PEFT adapter, and an adapter is no model"),
    "an adapter file": (
        lambda w: w.deltas["climate"] / "climate.onnx_adapter",
        r"is an adapter file, and an adapter is no model",
    ),
}


@pytest.mark.parametrize("what", BA_ALONE)
def test_an_adapter_alone_is_no_model(what: str, workshop: Workshop) -> None:
    find, said = BA_ALONE[what]
    with pytest.raises(BundleError, match=said) as caught:
        runtime.load(find(workshop))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_the_guides_example_and_what_ba_alone_answers(workshop: Workshop, bundle: Path) -> None:
    """docs/bundle-format.md has these numbers."""
    import numpy as np

    w0, a, b = np.array([[1, 2], [3, 4]]), np.array([[0.1, 0.2]]), np.array([[0.5], [0.6]])
    told, unseen = np.array([1, 2]), np.array([2, -1])
    text = " ".join((ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8").split())
    for name, values in {
        "W0 =": w0,
        "A =": a,
        "B =": b,
        "B A =": b @ a,
        "B A alone gives": b @ a @ told,
        "W0 + B A =": w0 + b @ a,
        "gives": (w0 + b @ a) @ told,
        "and gives": b @ a @ unseen,
        "the layer makes": (w0 + b @ a) @ unseen,
    }.items():
        assert f"{name} {json.dumps((np.round(values, 10) + 0).tolist())}" in text
    for update in factors(read_adapter(workshop.adapters["climate"]), Checkpoint(workshop.base)):
        weight = Checkpoint(workshop.base).read(update.tensor, 0, len(update.b)).astype(np.float32)
        assert np.linalg.matrix_rank(weight) > np.linalg.matrix_rank(update.b @ update.a) == 2


KILLED = '''
import os, pathlib, shutil, signal, sys
import runtime.update as update
from runtime import swap
from runtime.errors import BundleError
from runtime.manifest import verify

plain, delta, folder, renames = (*map(pathlib.Path, sys.argv[1:4]), sys.argv[4])
if renames == "two renames":
    swap._exchange = lambda one, other: False
bundle = folder / "bundle"
WATCHED = {"os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "ctypes.dlsym"}

def begin():
    for path in folder.iterdir():
        shutil.rmtree(path)
    shutil.copytree(plain, bundle, copy_function=os.link)

def install(kill_at):
    """Install in a child that is killed before its step `kill_at`; whether it was."""
    child = os.fork()
    if child == 0:
        steps = 0
        def count(event, arguments):
            nonlocal steps
            inside = event != "open" or str(folder) in str(arguments[0]) and arguments[1] not in ("r", "rb")
            if event in WATCHED and inside:
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        update.install(bundle, delta, unproven=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0

seen, kills = {"old": 0, "new": 0, "away": 0}, 0
while True:
    begin()
    if not install(kills + 1):
        break
    kills += 1
    if not bundle.exists():
        seen["away"] += 1
        try:
            verify(bundle)
        except BundleError as error:
            assert "--recover" in str(error), error
        update.recover(bundle)
    tasks = [entry.name for entry in verify(bundle).adapters]
    seen["new" if tasks else "old"] += 1
    update.install(bundle, delta, unproven=True)
    assert [entry.name for entry in verify(bundle).adapters] == ["climate"]
    update.recover(bundle)
    assert [path.name for path in folder.iterdir()] == ["bundle"], list(folder.iterdir())
print(kills, seen["old"], seen["new"], seen["away"])
'''


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_every_step_leaves_the_old_or_the_new(way: str, workshop: Workshop, tmp_path: Path) -> None:
    """Killed before every directory entry that an install makes, moves or removes, and every write."""
    (tmp_path / "killed").mkdir()
    arguments = [workshop.bundle, workshop.deltas["climate"], tmp_path / "killed", way]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    kills, old, new, away = map(int, done.stdout.split())
    assert kills == old + new >= 30
    assert min(old, new) >= 5
    assert away == (1 if way == "two renames" else 0)


FULL = """
import resource, sys, runtime
from runtime.errors import BundleError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    runtime.install(sys.argv[1], sys.argv[2], unproven=True)
except BundleError as error:
    print(error)
"""


@pytest.mark.parametrize("bytes_left", [0, 3000])
def test_a_disk_that_takes_no_more(bytes_left: int, workshop: Workshop, bundle: Path, tmp_path: Path) -> None:
    """The adapter's file cannot be written, whole or at all."""
    before = directory_files(bundle)
    command = [sys.executable, "-c", FULL, bundle, workshop.deltas["climate"], bytes_left]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    assert "it is as it was" in done.stdout, done.stderr
    assert directory_files(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_file_system_that_exchanges_nothing(
    workshop: Workshop, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import swap

    monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    runtime.install(bundle, workshop.deltas["climate"], unproven=True)
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == ".install-bundle":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    assert "No space left" in refusal(bundle, workshop.deltas["navigation"])


def test_whoever_opens_it_meanwhile_gets_a_bundle_or_a_refusal(workshop: Workshop, bundle: Path) -> None:
    def come_and_go() -> None:
        for _ in range(10):
            runtime.install(bundle, workshop.deltas["climate"], unproven=True)
            runtime.uninstall(bundle, "climate")

    whole = 0
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come_and_go)
        while not coming.done():
            with suppress(BundleError):
                verify(bundle)
                whole += 1
        coming.result()
    assert whole > 0


def test_two_installs_at_once(workshop: Workshop, bundle: Path) -> None:
    from runtime.swap import alone

    with alone(bundle):
        assert "another install is at work" in refusal(bundle, workshop.deltas["climate"])
    runtime.install(bundle, workshop.deltas["climate"], unproven=True)


def test_the_manifest_says_what_is_proved(workshop: Workshop, bundle: Path) -> None:
    runtime.install(bundle, workshop.deltas["climate"], unproven=True)
    for change in ({"proof": "own"}, {"gate": {"verdict": "pass", "checks": []}}, {"proof": "perhaps"}):
        copy = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        copy["adapters"][0] |= change
        with pytest.raises(BundleError, match=r"proof"):
            runtime.manifest.parse(json.dumps(copy))
