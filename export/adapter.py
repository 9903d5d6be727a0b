"""Low-rank updates → an adapter file for a switchable graph, in the adapter format of ONNX Runtime.

Stored in float32, the file is what `onnxruntime.LoraAdapter` loads for a graph in float32, and in float16
for one in float16. Other types are smaller and are expanded by our runtime alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import AdapterFormat, OrtValue

from runtime.errors import ExportError
from runtime.sites import (
    ADAPTER_SUFFIX,
    RECORD_SUFFIX,
    SCALES,
    AdapterRecord,
    Belonging,
    FactorType,
    Part,
    Site,
    Sites,
    foreign,
)

VERSION = 1
"""Of adapters and model, as the adapter format wants them; what belongs together is in the record."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Factors:
    """An update of one weight: y = (1 + output_scale) ⊙ W0 x + b a x + bias.

    Attributes:
        tensor: name of W0, of shape (out, in), in the checkpoint.
        a: (r, in).
        b: (out, r), with every scale of the update folded in.
        output_scale: (out,), which DoRA (arXiv 2402.09353) needs; no graph has it yet.
        bias: (out,); no graph has it yet.
    """

    tensor: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    output_scale: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None


def write_adapter(
    name: str, updates: Sequence[Factors], sites: Sites, belongs: Belonging, dtype: FactorType, out: Path
) -> AdapterRecord:
    """Write NAME.onnx_adapter and NAME.json into the directory `out`.

    Args:
        name: the task it is for.
        updates: of weights that the graph can adapt.
        sites: of the graph.
        belongs: the base that the updates were trained on; it must be the graph's. Its digests may be of
            more weights than are updated.
        dtype: how the factors are stored.
        out: an existing directory.

    Raises:
        ExportError: the updates do not fit the graph, or the disk refuses. All problems are listed.
    """
    files = (out / f"{name}{ADAPTER_SUFFIX}", out / f"{name}{RECORD_SUFFIX}")
    problems = (
        [] if _NAME.fullmatch(name) else [f"a name must be of letters, digits, . _ and -, not {name!r:.60}"]
    )
    problems += [f"{file.name} exists already" for file in files if not problems and file.exists()]
    names = dict.fromkeys(update.tensor for update in updates)
    problems += [f'there is no digest of "{tensor}"' for tensor in names if tensor not in belongs.tensors]
    digests = {tensor: belongs.tensors[tensor] for tensor in names if tensor in belongs.tensors}
    belongs = Belonging(digests, belongs.tokenizer, belongs.template)
    problems += foreign(belongs, sites, belongs.tokenizer, belongs.template)
    problems += _misfits(updates, sites, dtype)
    if problems:
        raise ExportError("\n".join((f'the adapter "{name}" does not fit:', *(f"  - {p}" for p in problems))))
    by_tensor = {update.tensor: update for update in updates}
    stored: dict[str, NDArray[np.generic]] = {}
    for site in sites.sites:
        if any(part.tensor in by_tensor for part in site.parts):
            a, b = fused(site, by_tensor)
            stored |= _stored(site.a, a, 0, dtype) | _stored(site.b, b, 1, dtype)
    file = AdapterFormat()
    file.set_adapter_version(VERSION)
    file.set_model_version(VERSION)
    file.set_parameters({key: OrtValue.ortvalue_from_numpy(values) for key, values in stored.items()})
    try:
        file.export_adapter(str(files[0]))
        raw = files[0].read_bytes()
        rank = max(len(update.a) for update in updates)
        record = AdapterRecord(1, name, hashlib.sha256(raw).hexdigest(), len(raw), rank, dtype, belongs)
        files[1].write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:
        for written in files:
            written.unlink(missing_ok=True)
        raise ExportError(f"cannot write {files[0]}: {error}") from error
    return record


def fused(site: Site, updates: Mapping[str, Factors]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A [columns, R] and B [R, rows] of a site: A side by side, B on the diagonal.

    A part without an update has rank 0.
    """
    found = [(part, updates[part.tensor]) for part in site.parts if part.tensor in updates]
    a = np.concatenate([update.a.T for _, update in found], axis=1)
    b = np.zeros((a.shape[1], site.rows), np.float32)
    starts = _starts(site.parts)
    at = 0
    for part, update in found:
        rank = len(update.a)
        b[at : at + rank, starts[part.tensor] : starts[part.tensor] + part.rows] = update.b.T
        at += rank
    return np.ascontiguousarray(a), b


def _starts(parts: Sequence[Part]) -> dict[str, int]:
    """The first output of each part."""
    ends = np.cumsum([part.rows for part in parts])
    return {part.tensor: int(end) - part.rows for part, end in zip(parts, ends, strict=True)}


def _stored(
    name: str, values: NDArray[np.float32], others: int, dtype: FactorType
) -> dict[str, NDArray[np.generic]]:
    """A factor as it is stored; in int8 with a scale for each rank, over the axis `others`."""
    if dtype != "int8":
        return {name: values.astype(dtype)}
    scales = np.abs(values).max(axis=others) / np.float32(127)
    scales[scales == 0] = 1
    rounded = np.rint(values / np.expand_dims(scales, others)).astype(np.int8)
    return {name: rounded, f"{name}{SCALES}": scales}


def _misfits(updates: Sequence[Factors], sites: Sites, dtype: FactorType) -> Iterator[str]:
    shapes = {part.tensor: (part.rows, site.columns) for site in sites.sites for part in site.parts}
    names = [update.tensor for update in updates]
    limit = float(np.finfo(np.float16 if dtype == "float16" else sites.dtype).max)
    if not updates:
        yield "it updates nothing"
    for tensor in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f'"{tensor}" is updated twice'
    for update in updates:
        rank = update.a.shape[0]
        rows, columns = shapes.get(update.tensor, (update.b.shape[0], update.a.shape[-1]))
        if update.a.shape != (rank, columns) or update.b.shape != (rows, rank):
            yield (
                f'"{update.tensor}" has factors of {list(update.b.shape)} and {list(update.a.shape)}; '
                f"the weight is {[rows, columns]}"
            )
        if not 1 <= rank <= sites.most_rank:
            yield f'"{update.tensor}" has rank {rank}; the graph takes 1 to {sites.most_rank}'
        # Written so that NaN, which is not smaller than anything, is caught too.
        if not all(np.abs(values).max(initial=0) <= limit for values in (update.a, update.b)):
            yield f'"{update.tensor}" has values that are not finite or beyond {limit:g}'
        if update.output_scale is not None:
            yield f'"{update.tensor}" scales the output (DoRA), which the graph cannot; merge the adapter'
        if update.bias is not None:
            yield f'"{update.tensor}" adds a bias, which the graph cannot; merge the adapter'
