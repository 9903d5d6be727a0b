"""A config file, its overrides and its paths → the frozen models of `pipeline.config`."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from pipeline.config import FILES, Config, Data, Export, Gate, Section, TaskData, Validate
from pipeline.config_problems import validated
from runtime.errors import ConfigError

Files = TypeVar("Files", Data, TaskData)

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a TOML file and apply `key=value` overrides such as `train.r=32`.

    Relative paths in the file are taken from the file's own folder.

    Raises:
        ConfigError: the file is missing, is not TOML, has an unknown key, or a value is out of range.
    """
    return _anchored(validated(Config, _read(path, overrides), str(path)), path.parent)


def load_validation(path: Path | None, overrides: tuple[str, ...] = ()) -> tuple[Validate, Gate]:
    """The `[validate]` and `[gate]` tables of a config, or their defaults where there is no config.

    Raises:
        ConfigError: as `load_config`.
    """
    if path is not None:
        config = load_config(path, overrides)
        return config.validate_, config.gate
    table: dict[str, Any] = {}
    for override in overrides:
        _apply(table, override)
    tables = validated(_Validation, table, "--set")
    return tables.validate_, tables.gate


def parse_export(table: dict[str, Any]) -> Export:
    """An `[export]` table that did not come from a file.

    Raises:
        ConfigError: a value is out of range.
    """
    return validated(Export, table, "export")


class _Validation(Section):
    """The two tables that a bundle of any origin is judged by."""

    validate_: Validate = Field(default=Validate(), alias="validate")
    gate: Gate = Gate()


def _read(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; configs/ has some to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return table


def _apply(table: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a nested table; the value is TOML, or a bare string where it is not."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f'--set takes key=value, such as train.r=32, not "{override}"')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f'--set {override}: "{parent}" is a value, not a table')
    table[last] = value


def _anchored(config: Config, folder: Path) -> Config:
    """The config with relative paths made absolute against the config file's folder."""
    data = _anchored_files(config.data, folder, "data")
    tasks = tuple(
        task.model_copy(update={"data": _anchored_files(task.data, folder, f"{task.name}.data")})
        for task in config.tasks
    )
    base = config.base
    if base.path is not None:
        base = base.model_copy(update={"path": (folder / _expanded(base.path, "base.path")).resolve()})
    return config.model_copy(update={"data": data, "base": base, "tasks": tasks})


def _anchored_files(data: Files, folder: Path, where: str) -> Files:
    return data.model_copy(
        update={
            key: (folder / _expanded(value, f"{where}.{key}")).resolve()
            for key in ("tools", *FILES)
            if (value := getattr(data, key, None)) is not None
        }
    )


def _expanded(path: Path, key: str) -> Path:
    """The path with environment variables in place of their names."""
    names = [name for pair in _VARIABLE.findall(str(path)) for name in pair if name]
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ConfigError(
            f'"{key}" is {path}, but {missing[0]} is not set; set it to the folder that it names'
        )
    return Path(os.path.expandvars(path))
