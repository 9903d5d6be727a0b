"""What a training says of itself, beside the adapter that it made."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.errors import AdapterError

TRAINING = "training.json"


def trained_prompt(adapter: Path) -> str | None:
    """The system prompt that an adapter was trained with; none, where it was trained elsewhere.

    Raises:
        AdapterError: the record is there but cannot be read.
    """
    try:
        figures = json.loads((adapter / TRAINING).read_text(encoding="utf-8"))
        return str(figures["system"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{adapter / TRAINING} is no record of a training: {error!r}; train again"
        ) from error
