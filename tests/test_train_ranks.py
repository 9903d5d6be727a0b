"""`cockpit train` launched as several processes: one adapter, one voice, one exit code, nothing half-made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.train import TRAINING

RECORDS = [
    ("set the driver side to 22 degrees", "climate_set_temperature", {"celsius": 22, "zone": "driver"}),
    ("open the rear left window half way", "window_set_position", {"window": "rear_left", "percent": 50}),
    ("hazard lights on", "light_set_hazard", {"on": True}),
]
WEIGHTS = "adapter_model.safetensors"

COCKPIT = """
import os, sys
from pathlib import Path
from pipeline.cli import main

{before}
code = None
try:
    main()
except SystemExit as stop:
    code = stop.code
    raise
finally:
    (Path(__file__).parent / f"exit-{{os.environ['RANK']}}").write_text(str(code or 0))
"""
GIVES_UP = """
import pipeline.train
from runtime.errors import TrainingError

def give_up(*unused):
    raise TrainingError("this rank gave up")

if os.environ["RANK"] == "1":
    pipeline.train.mean_loss = give_up
"""
DIES = """
import pipeline.train

if os.environ["RANK"] == "1":
    pipeline.train.refuse_changed_base = lambda *unused: os._exit(9)
"""


@pytest.fixture(scope="module")
def project(tiny_checkpoint: Path, tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its data and the tiny checkpoint as its base; each of 11 records is a row of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    for split, times in (("train", 4), ("validation", 1), ("test", 1)):
        lines = [
            json.dumps(
                {
                    "id": f"{split}-{time}-{name}",
                    "lang": "en",
                    "utterance": f"{utterance} {split} {time}",
                    "calls": [{"name": name, "arguments": arguments}],
                }
            )
            for time in range(times)
            for utterance, name, arguments in RECORDS
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines[: 11 if split == "train" else 3]) + "\n")
    shutil.copyfile(tiny_tools_file, folder / "tools.json")
    (folder / "config.toml").write_text(
        f"""
        name = "tiny"
        [base]
        source = "path"
        path = "{tiny_checkpoint}"
        [data]
        tools = "tools.json"
        train = "train.jsonl"
        validation = "validation.jsonl"
        test = "test.jsonl"
        [train]
        r = 4
        alpha = 8.0
        learning_rate = 1e-2
        epochs = 2
        tokens_per_step = 16
        save_steps = 5
        dtype = "float32"
        """
    )
    return folder


def launch(folder: Path, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in two processes, its script in `folder`."""
    (folder / "cockpit.py").write_text(COCKPIT.format(before=before))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(folder / "cockpit.py"), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def exit_codes(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("exit-*"))]


def arguments(project: Path, folder: Path, *overrides: str) -> list[str]:
    settings = [argument for override in overrides for argument in ("--set", override)]
    places = ("--out", folder / "adapter", "--runs", folder / "runs")
    return [str(argument) for argument in ("train", project / "config.toml", *places, *settings)]


def train(project: Path, folder: Path, *overrides: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return launch(folder, *arguments(project, folder, *overrides), before=before)


@pytest.mark.parametrize(
    "settings",
    [(), ("train.method=dora",), ("train.method=adalora", "train.eval_steps=5")],
    ids=["lora", "dora", "adalora"],
)
def test_two_processes_make_the_adapter_of_one(
    project: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Eleven rows, two a step, so that the last step of an epoch lacks one."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = arguments(project, tmp_path / "one", "train.gradient_accumulation=2", *settings)
    assert CliRunner().invoke(app, alone).exit_code == 0
    done = train(project, tmp_path / "two", *settings)
    assert done.returncode == 0, done.stderr
    assert exit_codes(tmp_path / "two") == ["0", "0"]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"adapter", "runs"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "adapter", "runs", "cockpit.py", "exit-0", "exit-1",
    }  # fmt: skip
    assert done.stdout.count("adapter:") == 1
    one, two = (json.loads((tmp_path / name / "adapter" / TRAINING).read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["rows"], one["steps"], two["steps"]) == (11, 12, 12)
    for mine, theirs in zip(one["curve"], two["curve"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-5)
    assert one.get("ranks") == two.get("ranks")
    factors, others = (load_file(tmp_path / name / "adapter" / WEIGHTS) for name in ("one", "two"))
    assert factors.keys() == others.keys()
    for name, factor in factors.items():
        assert factor == pytest.approx(others[name], rel=1e-3, abs=1e-5)


def test_processes_stop_early_together(project: Path, tmp_path: Path) -> None:
    """At a rate that changes no sum of a product, so that no machine sees an improvement."""
    settings = ("learning_rate=1e-12", "scheduler=constant", "epochs=9", "eval_steps=2", "patience=2")
    overrides = tuple(f"train.{setting}" for setting in settings)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = arguments(project, tmp_path / "one", "train.gradient_accumulation=2", *overrides)
    assert CliRunner().invoke(app, alone).exit_code == 0
    done = train(project, tmp_path / "two", *overrides)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "adapter" / TRAINING).read_text()) for name in ("one", "two"))
    assert exit_codes(tmp_path / "two") == ["0", "0"]
    assert [(record["steps"], record["kept_step"]) for record in (one, two)] == [(6, 2), (6, 2)]


def test_what_stops_one_process_stops_all_and_is_said_once(project: Path, tmp_path: Path) -> None:
    """Rank 0 is waiting for its gradients when rank 1 gives up."""
    done = train(project, tmp_path, before=GIVES_UP)
    assert done.returncode != 0
    assert exit_codes(tmp_path) == ["3", "3"]
    assert done.stderr.count("gave up") == 1
    assert "cockpit: rank 1: this rank gave up" in done.stderr
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / ".partial-adapter").exists()


def test_a_process_that_dies_takes_the_rest_with_it(project: Path, tmp_path: Path) -> None:
    done = train(project, tmp_path, before=DIES)
    assert done.returncode != 0
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / ".partial-adapter" / WEIGHTS).exists()


def test_a_config_that_is_refused_is_refused_once(project: Path, tmp_path: Path) -> None:
    done = train(project, tmp_path, 'train.target_modules=["k_porj"]')
    assert exit_codes(tmp_path) == ["2", "2"]
    assert done.stderr.count('did you mean "k_proj"') == 1


def test_other_verbs_are_for_one_process(project: Path, tmp_path: Path) -> None:
    done = launch(tmp_path, "build", project / "config.toml", "--runs", tmp_path / "runs")
    assert exit_codes(tmp_path) == ["2", "2"]
    assert done.stderr.count("`cockpit build` is the work of one process and was launched as 2") == 1
    assert not (tmp_path / "runs").exists()
