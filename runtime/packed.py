"""Weights in the order in which this processor multiplies by them, kept from one load to the next.

ONNX Runtime rearranges quantized weights whenever it opens a graph, in memory of each process's own. Kept in
a file, they are mapped, and all processes that open the bundle share the pages. The order depends on the
processor and on ONNX Runtime, so the file is made on the device, at the first load, and never by whoever made
the bundle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import onnxruntime

from runtime.kept import discard, identity, keep, read_kept, sync
from runtime.processor import processor
from runtime.session import first_line

_LOG = logging.getLogger(__name__)
_GRAPH, _DATA, _RECORD = "model.onnx", "model.onnx.data", "packed.json"
_SMALLEST = 1024
"""Bytes of the smallest tensor that lies in the data file and not in the graph's own."""


def packed_graph(cache: Path, directory: Path, digests: tuple[str, ...]) -> Path | None:
    """A graph that does what a bundle's model.onnx does, with packed weights.

    Args:
        cache: as `runtime.kept.own_directory` gives it.
        directory: the verified bundle.
        digests: of every file that the graph is made of.

    Returns:
        The .onnx file, to be opened without optimizing it again; None where it is not there and cannot be
        made, which is logged.
    """
    key = hashlib.sha256(
        json.dumps([digests, onnxruntime.__version__, onnxruntime.get_build_info(), processor()]).encode()
    ).hexdigest()
    place = cache / f"packed-{key[:32]}"
    try:
        with _alone(cache):
            if read_kept(place / _RECORD) != _record(place, directory):
                _make(place, directory)
    # A full disk is whatever ONNX Runtime says it is, and its exceptions share no base but Exception.
    except Exception as error:  # noqa: BLE001
        _LOG.warning("the packed weights of %s cannot be kept in %s: %s", directory, cache, first_line(error))
        return None
    for old in cache.glob("packed-*"):
        record = read_kept(old / _RECORD)
        if old != place and isinstance(record, dict) and record.get("bundle") == str(directory.resolve()):
            discard(old)
    return place / _GRAPH


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Wait for other processes that use the cache; a killed one does not keep anybody waiting."""
    import fcntl  # which Windows lacks, and no cache comes from there

    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(place: Path, directory: Path) -> None:
    """Write the packed graph and its record to `place`, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=place.parent) as scratch:
        made = Path(scratch) / "graph"
        made.mkdir()
        _pack(directory / _GRAPH, made)
        keep(made / _RECORD, _record(made, directory))
        discard(place)  # what is there is not as it was left
        made.rename(place)


def _pack(graph: Path, made: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(made / _GRAPH)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", _DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_SMALLEST)),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    for name in (_GRAPH, _DATA):
        sync(made / name)


def _record(place: Path, directory: Path) -> dict[str, object]:
    """What packed.json must hold; of a place that lacks a file, what none does."""
    try:
        files = {name: asdict(identity(place / name)) for name in (_GRAPH, _DATA)}
    except OSError:
        files = {}
    return {"bundle": str(directory.resolve()), "files": files}
