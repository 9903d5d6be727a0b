"""Keys and values of what every prompt begins with, kept in a file from one start to the next.

A file is its own sha256 and the values. The digest is taken over all that they depend on as well: the
graph, its weights, the adapter, the tokens, ONNX Runtime and the processor, which choose the kernels that
round. So what is damaged, stale or of something else does not match, and is computed anew and written over.
Whoever may write the file may write what the model believes to have read: a folder for these files must be
as safe as the bundle's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.adapters import Adapter
from runtime.decoder import Decoder
from runtime.growing_decoder import GrowingDecoder
from runtime.manifest import Manifest
from runtime.processor import processor

_FORMAT = "cockpit-edge prefix 1"
_DIGEST_BYTES = 32
_MODEL = ("model.onnx", "model.onnx.data")


class PrefixCache:
    """One file of a folder, for one prefix of one model with one adapter or none."""

    def __init__(self, folder: Path, manifest: Manifest, adapter: Adapter | None, threads: int) -> None:
        """Say what is kept; nothing is read or written.

        Args:
            folder: made when something is written.
            manifest: of a verified bundle; its name names the file, so that a newer bundle's takes its place.
            adapter: whose factors are bound.
            threads: of one operator.
        """
        weights = "base" if adapter is None else adapter.digest
        self._file = folder / f"{manifest.name}.{weights[:16]}.prefix"
        self._identity = [
            _FORMAT,
            {name: manifest.files[name].sha256 for name in _MODEL if name in manifest.files},
            weights,
            onnxruntime.__version__,
            threads,
            processor(),
        ]

    def restore(self, decoder: Decoder | GrowingDecoder, tokens: Sequence[int]) -> bool:
        """Begin a decoder's conversation with these tokens, if the file has them; False: nothing was done."""
        layout = decoder.layout(len(tokens))
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout]
        try:
            if self._file.stat().st_size != _DIGEST_BYTES + sum(sizes):
                return False
            raw = memoryview(self._file.read_bytes())
        except OSError:
            return False
        if raw[:_DIGEST_BYTES] != self._digest(tokens, [raw[_DIGEST_BYTES:]]):
            return False
        values, at = [], _DIGEST_BYTES
        for (shape, dtype), size in zip(layout, sizes, strict=True):
            values.append(np.frombuffer(raw[at : at + size], dtype).reshape(shape))
            at += size
        decoder.restore(values)
        return True

    def save(self, decoder: Decoder | GrowingDecoder, tokens: Sequence[int]) -> None:
        """Write what a decoder has of its first tokens. A disk that is full or closed is no error."""
        values = [np.ascontiguousarray(value).data.cast("B") for value in decoder.cached(len(tokens))]
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".prefix-", dir=self._file.parent) as beside:
                written = Path(beside) / self._file.name
                with written.open("wb") as file:
                    file.write(self._digest(tokens, values))
                    file.writelines(values)
                written.replace(self._file)

    def _digest(self, tokens: Sequence[int], values: Sequence[memoryview]) -> bytes:
        identity = json.dumps([*self._identity, list(tokens)], sort_keys=True)
        digest = hashlib.sha256(f"{len(identity)}:{identity}".encode())
        for value in values:
            digest.update(value)
        return digest.digest()
