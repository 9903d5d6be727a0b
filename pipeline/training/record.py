"""What a training says of itself, beside the adapter that it made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.errors import AdapterError

TRAINING = "training.json"
"""The file of an adapter that says how it was trained."""


def trained_prompt(adapter: Path) -> str | None:
    """The system prompt that an adapter was trained with; none, where it was trained elsewhere.

    Raises:
        AdapterError: the record is there but cannot be read.
    """
    figures = read_training(adapter)
    if figures is None:
        return None
    if not isinstance(figures.get("system"), str):
        raise AdapterError(
            f"{adapter / TRAINING} does not say which system prompt the adapter was trained with; train again"
        )
    return str(figures["system"])


def trained_in_nf4(adapter: Path) -> bool:
    """Whether an adapter was trained here beside 4-bit weights; False where it was trained elsewhere.

    Raises:
        AdapterError: the record is there but cannot be read.
    """
    return (read_training(adapter) or {}).get("method") == "qlora"


def read_training(adapter: Path) -> dict[str, Any] | None:
    """All of the record; none, where the adapter was trained elsewhere.

    Raises:
        AdapterError: the record is there but cannot be read.
    """
    file = adapter / TRAINING
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot read {file}: {error}; train again") from error
    if not isinstance(figures, dict):
        raise AdapterError(f"{file} is not a JSON object; train again")
    return figures
