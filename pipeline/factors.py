"""A PEFT adapter → factors for a switchable graph, and what they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.adapter import Factors
from export.weights import Checkpoint
from pipeline.adapter import Adapter, read_factor, updates
from pipeline.fingerprint import fingerprint
from pipeline.provenance import file_digest
from runtime.errors import AdapterError
from runtime.sites import Belonging


def factors(adapter: Adapter, base: Checkpoint) -> tuple[Factors, ...]:
    """The adapter's updates with the scale folded into B: alpha / r or alpha / √r, patterns included.

    Raises:
        AdapterError: adapter and base do not fit, or an update is of a head that is tied to the embedding.
    """
    found = []
    for update in updates(adapter, base):
        if update.target != update.source:
            raise AdapterError(
                f'"{update.target}" is tied to "{update.source}"; an update of it can only be merged'
            )
        a, b = read_factor(adapter.tensors[update.a]), read_factor(adapter.tensors[update.b])
        found.append(Factors(update.target, a, b * np.float32(update.scale)))
    return tuple(found)


def belonging(adapter: Adapter, base: Path, exported: Path) -> Belonging:
    """What the adapter must be used with.

    Args:
        adapter: says itself what it was trained on, or else belongs to `base`.
        base: the checkpoint directory.
        exported: a directory with the tokenizer.json and chat_template.jinja that it was trained with.

    Raises:
        CheckpointError: the base cannot be read.
        AdapterError: `exported` lacks a file.
    """
    trained_on = adapter.base or fingerprint(base)
    try:
        tokenizer, template = (
            file_digest(exported / name) for name in ("tokenizer.json", "chat_template.jinja")
        )
    except OSError as error:
        raise AdapterError(f"cannot read what the adapter was trained with: {error}") from error
    return Belonging(dict(trained_on.tensors), tokenizer, template)
