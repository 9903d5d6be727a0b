"""An adapter file → the inputs of a switchable graph, or a refusal.

Nothing is read from an adapter file before its digest is that of its record. One that is stored in the
graph's type is mapped, and its factors are pages of the file: they take memory while the adapter is in use,
and may leave it in between (`Adapter.rest`). Other types are expanded into memory of their own. Either way
the file may be deleted, or replaced by a rename, while its adapter answers; a mapped one must not be written
to, nor cut short (`runtime.pages.mapped`).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.adapter_file import read_tensors
from runtime.errors import BundleError
from runtime.pages import copied, give_back, leave, mapped
from runtime.sites import (
    ADAPTER_SUFFIX,
    SCALES,
    AdapterRecord,
    FactorType,
    Site,
    Sites,
    foreign,
    read_adapter_record,
    record_name,
)

_TYPES: Mapping[FactorType, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
}
_Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that fits a graph.

    Attributes:
        name: the task it is for.
        digest: sha256 of its file.
        rank: largest of one weight's update.
        belongs_to: digest of what it must be used with.
        values: graph input → factor, of the graph's type.
        pages: of the file, where the factors lie in them; None: they have memory of their own.
    """

    name: str
    digest: str
    rank: int
    belongs_to: str
    values: Mapping[str, NDArray[np.generic]]
    pages: mmap.mmap | None

    def rest(self) -> None:
        """Let factors that lie in the file leave memory; the next answer brings them back as they are."""
        if self.pages is not None:
            leave(self.pages)


def load_adapter(file: Path, sites: Sites, tokenizer: str, template: str) -> Adapter:
    """Read NAME.onnx_adapter and the NAME.json beside it.

    Args:
        file: the adapter.
        sites: of the graph that it is for.
        tokenizer: sha256 of the tokenizer.json it will be used with.
        template: sha256 of the chat_template.jinja it will be used with.

    Raises:
        BundleError: the adapter is missing, damaged or malformed, does not fit the graph, or belongs to
            another base, tokenizer or template. All problems are listed.
    """
    record = read_adapter_record(file.with_name(record_name(file.name)))
    problems = foreign(record.belongs, sites, tokenizer, template)
    if not 1 <= record.rank <= sites.most_rank:
        problems.append(f"its rank is {record.rank}; this graph takes 1 to {sites.most_rank}")
    if record.name != file.name.removesuffix(ADAPTER_SUFFIX):
        problems.append(f"its record is of {record.name!r:.60}")
    tensors: _Tensors = {}
    try:
        with file.open("rb") as stream:
            problems += _damage(stream, record)
            if not problems:
                pages = mapped(stream)
                tensors = read_tensors(memoryview(pages))
    except OSError as error:
        problems.append(f"it cannot be read: {error.strerror}")
    except ValueError as error:
        raise BundleError(f"cannot read the adapter {file.name}: {error}; make it again") from error
    if not problems:
        touched = [
            site for site in sites.sites if any(p.tensor in record.belongs.tensors for p in site.parts)
        ]
        problems = list(_misfits(tensors, touched, record.dtype, sites.most_rank))
    if not problems:
        dtype = np.dtype(sites.dtype)
        factors = {name: values for site in touched for name, values in _expanded(tensors, site, dtype)}
        problems = [
            f'"{name}" has values that are not finite in {dtype}'
            for name, values in factors.items()
            if not np.isfinite(values).all()
        ]
    if problems:
        raise BundleError(f"the adapter {file.name} is refused; install one made for this model:", problems)
    leave(pages)  # which were all read just now
    kept = pages if record.dtype == sites.dtype else None
    if kept is None:
        give_back()  # what the expansion took for a while
    return Adapter(record.name, record.sha256, record.rank, record.belongs.digest, factors, kept)


def _damage(file: BufferedReader, record: AdapterRecord) -> list[str]:
    size = os.fstat(file.fileno()).st_size
    if size != record.size:
        return [f"it has {size} bytes instead of {record.size}"]
    return [] if hashlib.file_digest(file, "sha256").hexdigest() == record.sha256 else ["it was changed"]


def _misfits(tensors: _Tensors, touched: list[Site], dtype: FactorType, most_rank: int) -> Iterator[str]:
    """How the tensors differ from what the sites that the adapter changes ask for."""
    suffixes = ("", SCALES) if dtype == "int8" else ("",)
    expected = {f"{name}{suffix}" for site in touched for name in (site.a, site.b) for suffix in suffixes}
    yield from (f'"{name}" is missing' for name in sorted(expected - tensors.keys()))
    yield from (f'"{name}" has no place in the graph' for name in sorted(tensors.keys() - expected))
    for site in touched:
        if not all(f"{name}{suffix}" in tensors for name in (site.a, site.b) for suffix in suffixes):
            continue
        a, b = tensors[site.a], tensors[site.b]
        rank = a.shape[-1] if a.ndim else 0
        most = most_rank * len(site.parts)
        if a.shape != (site.columns, rank) or b.shape != (rank, site.rows) or not 1 <= rank <= most:
            yield (
                f'"{site.a}" and its B have shapes {list(a.shape)} and {list(b.shape)}; the graph takes '
                f"[{site.columns}, R] and [R, {site.rows}], R from 1 to {most}"
            )
        for name in (site.a, site.b):
            if tensors[name].dtype != _TYPES[dtype]:
                yield f'"{name}" is {tensors[name].dtype} instead of {dtype}'
            scales = tensors.get(f"{name}{SCALES}")
            if dtype == "int8" and (scales is None or scales.shape != (rank,) or scales.dtype != np.float32):
                yield f'"{name}{SCALES}" must be {rank} values in float32'


def _expanded(
    tensors: _Tensors, site: Site, dtype: np.dtype[np.generic]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The two inputs of a site in the graph's type; a scale is of one rank: a column of A, a row of B."""
    for name, others in ((site.a, 0), (site.b, 1)):
        values = tensors[name]
        with np.errstate(all="ignore"):  # what overflows is infinite, and refused for it
            if (scales := tensors.get(f"{name}{SCALES}")) is not None:
                values = values.astype(np.float32) * np.expand_dims(scales, others)
            if values.dtype != dtype:
                values = copied(values.astype(dtype))
        yield name, values
