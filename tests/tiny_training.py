"""A training of seconds: a few records, a config for them, and ways to run and to kill it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.config import Base, Config, Data, Train
from pipeline.stage import Progress
from pipeline.train import train

RECORDS = [
    ("set the driver side to 22 degrees", "climate_set_temperature", {"celsius": 22, "zone": "driver"}),
    ("open the rear left window half way", "window_set_position", {"window": "rear_left", "percent": 50}),
    ("hazard lights on", "light_set_hazard", {"on": True}),
    ("打开车窗", "window_set_position", {"window": "all", "percent": 100}),
]


class KilledError(Exception):
    """Stands for whatever ends a process."""


def write_data(folder: Path, tools: Path) -> Path:
    """Twelve training records, four of them for validation, as a data stage leaves them."""
    lines = [
        json.dumps(
            {
                "id": str(number),
                "lang": "en",
                "utterance": utterance,
                "calls": [{"name": name, "arguments": arguments}],
            }
        )
        for number, (utterance, name, arguments) in enumerate(RECORDS * 3)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "validation.jsonl").write_text("\n".join(lines[:4]))
    shutil.copy(tools, folder / "tools.json")
    return folder


def config(tools: Path, **settings: object) -> Config:
    values: dict[str, object] = {
        "r": 4,
        "alpha": 8.0,
        "learning_rate": 1e-2,
        "epochs": 4.0,
        "tokens_per_step": 256,
        "dtype": "float32",
        "save_steps": 2,
        **settings,
    }
    return Config(
        name="tiny",
        base=Base(source="path", path=Path("unused")),
        data=Data(tools=tools),
        train=Train.model_validate(values),
    )


def silent(message: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def killed_at(step: int) -> Progress:
    """Progress that ends the process when so many steps are done."""

    def kill(message: str, done: int, total: int) -> None:
        if done == step:
            raise KilledError

    return kill


def run(
    settings: Config,
    base: Path,
    data: Path,
    folder: Path,
    work: Path | None = None,
    progress: Progress = silent,
) -> tuple[Path, dict[str, object]]:
    out = folder / "adapter"
    out.mkdir(parents=True)
    return out, train(settings, base, data, out, work or folder / "work", progress)
