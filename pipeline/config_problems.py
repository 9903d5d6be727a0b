"""A table of the config, or all that is wrong with it in one sentence; unknown keys with the nearest name."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from runtime.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], table: dict[str, Any], where: str) -> Model:
    """A table as a model of it.

    Raises:
        ConfigError: it has an unknown key, or a value is out of range; the message begins with `where`.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(model, error)}") from error


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """All problems of a validation in one clause each, unknown keys with the nearest known name."""
    problems = error.errors()
    return "; ".join(
        _explain_one(model, problem["loc"], problem["type"], problem["msg"]) for problem in problems
    )


def _explain_one(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        known = _known(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f'unknown key "{where}"' + (
            f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(known)}"
        )
    if kind == "missing":
        return f'"{where}" is missing'
    said = message.removeprefix("Value error, ")
    return f'"{where}": {said}' if where else said


def _known(model: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at `parents`."""
    for parent in parents:
        for name, field in model.model_fields.items():
            if (field.alias or name) == parent and isinstance(field.annotation, type):
                model = field.annotation
            elif (field.alias or name) == parent and get_origin(field.annotation) is tuple:
                model = get_args(field.annotation)[0]
    return [field.alias or name for name, field in model.model_fields.items()]
