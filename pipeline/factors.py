"""A PEFT adapter → factors for a switchable graph, and what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.adapter import Factors
from export.weights import Checkpoint
from pipeline.adapter import EMBEDDING, HEAD, Adapter, Parts, parts
from pipeline.adapter_config import listed
from pipeline.fingerprint import fingerprint
from pipeline.provenance import file_digest
from runtime.errors import AdapterError
from runtime.sites import Belonging

_UNFIT = (f"{EMBEDDING}.weight", f"{HEAD}.weight")


def factors(adapter: Adapter, base: Checkpoint) -> tuple[Factors, ...]:
    """The adapter's updates, every scale folded into B: alpha / r, alpha / √r, AdaLoRA's values into A.

    A layer that AdaLoRA has left no rank has no factors.

    Raises:
        AdapterError: adapter and base do not fit, or it holds what a graph cannot add beside a product;
            all of that is listed.
    """
    found = parts(adapter, base)
    if problems := list(_unfit(found)):
        raise AdapterError(listed(f"{adapter.path} can be merged, but not kept unmerged:", problems))
    made = []
    for name, update in found.updates.items():
        if update.factors.b.shape[-1]:
            b, a = update.factors.read()
            made.append(Factors(name, a.astype(np.float32), b.astype(np.float32)))
    return tuple(made)


def _unfit(found: Parts) -> Iterator[str]:
    for name, update in found.updates.items():
        if name in _UNFIT:
            yield f'"{name}" is the embedding or the head, beside which there is no branch'
        elif name.endswith(".bias"):
            yield f'"lora_bias": "{name}" is no product'
        elif update.magnitude is not None:
            yield f'"use_dora": "{name}" has lengths of its own (DoRA)'
    for name in found.replaced:
        yield f'"{name}" takes the place of the base\'s, which other tasks need'


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
