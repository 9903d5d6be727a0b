"""What a checkpoint's weights are, in one digest: independent of file names, shards and their order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from export.weights import NAMES, Checkpoint
from pipeline.provenance import json_digest
from pipeline.rows import row_blocks
from runtime.errors import CheckpointError

FINGERPRINT = "base_fingerprint.json"
"""The file of an adapter that names the base it was trained on."""

_READ_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a checkpoint's weights.

    Attributes:
        digest: sha256 over `tensors`.
        tensors: name → element type, shape and sha256 of the bytes, as in `"F32 576x1536 9f86…"`.
    """

    digest: str
    tensors: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def fingerprint(directory: Path) -> Fingerprint:
    """Digest the weights of a checkpoint directory, reading a few megabytes at a time.

    Raises:
        CheckpointError: the checkpoint cannot be read, or a weight is NaN or infinite.
    """
    checkpoint = Checkpoint(directory)
    tensors = {name: tensor_digest(checkpoint, name) for name in sorted(checkpoint.names)}
    return Fingerprint(json_digest(tensors), tensors)


def tensor_digest(checkpoint: Checkpoint, name: str) -> str:
    """One tensor's element type, shape and sha256.

    Raises:
        CheckpointError: the tensor cannot be read, or has NaN or infinite values.
    """
    shape = checkpoint.shape(name)
    content = hashlib.sha256()
    for start, stop in row_blocks(shape, _READ_ELEMENTS):
        content.update(checkpoint.read(name, start, stop).reshape(-1).view("u1").data)
    return f"{NAMES[checkpoint.dtype(name)]} {'x'.join(map(str, shape)) or 'scalar'} {content.hexdigest()}"


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint written by `Fingerprint.write`.

    Raises:
        CheckpointError: the file is not a fingerprint, or its digest is not that of its tensors.
    """
    try:
        match json.loads(path.read_text(encoding="utf-8")):
            case {"digest": str(digest), "tensors": dict(tensors)} if json_digest(tensors) == digest:
                return Fingerprint(digest, {str(name): str(text) for name, text in tensors.items()})
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    raise CheckpointError(f"{path} is damaged: its digest is not that of the tensors it lists")
