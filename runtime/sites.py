"""Where a graph takes LoRA adapters, and what an adapter file says of itself. Standard library only.

`adapter_sites.json` lies beside a switchable model.onnx and names its optional inputs. Beside every
`NAME.onnx_adapter` lies `NAME.json`, because the adapter format of ONNX Runtime has tensors and two version
numbers, and no place for what they belong to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from runtime.errors import BundleError
from runtime.strict import parse_json, read_record

SITES = "adapter_sites.json"
ADAPTERS = "adapters"
"""The bundle's directory of adapters."""
ADAPTER_SUFFIX = ".onnx_adapter"
RECORD_SUFFIX = ".json"
SCALES = ".scales"
"""Ends the name of the scales of a tensor that is stored in int8: one for each rank, float32."""
MOST_BYTES = 16 << 20
"""A larger JSON file is refused before it is read."""

FactorType = Literal["float32", "float16", "int8"]
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Part:
    """One weight of the base, of shape (rows, the site's columns).

    Attributes:
        tensor: its name in the checkpoint.
        rows: its outputs.
        digest: its element type, shape and sha256, as in `"F32 576x1536 9f86…"`.
    """

    tensor: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Site:
    """One product of the graph, of weights that read the same input, and the branch beside it.

    Attributes:
        a: the input of shape (columns, R): the parts' factors A, transposed, side by side.
        b: the input of shape (R, rows of all parts): their factors B, transposed, on the diagonal.
        columns: width of what the product reads.
        parts: in the order of the product's outputs.
    """

    a: str
    b: str
    columns: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Outputs of all parts."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class Sites:
    """adapter_sites.json.

    Attributes:
        most_rank: largest rank of one weight's update.
        dtype: of every input.
        sites: in the order of the layers.
    """

    format_version: Literal[1]
    most_rank: int
    dtype: Literal["float32", "float16"]
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Belonging:
    """What an adapter must be used with.

    Attributes:
        tensors: name → digest of each weight of the base that it changes.
        tokenizer: sha256 of tokenizer.json.
        template: sha256 of chat_template.jinja.
    """

    tensors: dict[str, str]
    tokenizer: str
    template: str

    @property
    def digest(self) -> str:
        """sha256 over all of it."""
        value = {"tensors": self.tensors, "tokenizer": self.tokenizer, "template": self.template}
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class AdapterRecord:
    """NAME.json.

    Attributes:
        name: the task it is for.
        sha256: of NAME.onnx_adapter.
        size: of NAME.onnx_adapter, in bytes.
        rank: largest of one weight's update.
        dtype: of the stored factors.
        belongs: what it must be used with.
    """

    format_version: Literal[1]
    name: str
    sha256: str
    size: int
    rank: int
    dtype: FactorType
    belongs: Belonging


def read_sites(directory: Path) -> Sites:
    """Read adapter_sites.json of a bundle or an exported checkpoint.

    Raises:
        BundleError: it is missing or malformed.
    """
    sites = _read(Sites, directory / SITES)
    inputs = [name for site in sites.sites for name in (site.a, site.b)]
    parts = [part.tensor for site in sites.sites for part in site.parts]
    sizes = [sites.most_rank, *(size for site in sites.sites for size in (site.columns, site.rows))]
    if not parts or len(set(inputs)) < len(inputs) or len(set(parts)) < len(parts) or min(sizes) < 1:
        raise BundleError(f"{SITES} is malformed: it must name each input and each weight once, with sizes")
    return sites


def read_adapter_record(path: Path) -> AdapterRecord:
    """Read the NAME.json of an adapter.

    Raises:
        BundleError: it is missing or malformed.
    """
    return _read(AdapterRecord, path)


def record_name(file: str) -> str:
    """NAME.json of a NAME.onnx_adapter."""
    return file.removesuffix(ADAPTER_SUFFIX) + RECORD_SUFFIX


def foreign(belongs: Belonging, sites: Sites, tokenizer: str, template: str) -> list[str]:
    """Why an adapter does not belong to a model; the first weight that differs is named.

    Args:
        belongs: what it must be used with.
        sites: the model's, with the digests of its weights.
        tokenizer: sha256 of the model's tokenizer.json.
        template: sha256 of the model's chat_template.jinja.
    """
    known = {part.tensor: part.digest for site in sites.sites for part in site.parts}
    found = [
        f'"{name}" is no weight that can be adapted here' for name in belongs.tensors if name not in known
    ]
    other = [name for name in known if name in belongs.tensors and belongs.tensors[name] != known[name]]
    if other:
        found.append(
            f"it was made for another base: {len(other)} of {len(belongs.tensors)} weights differ, "
            f'the first is "{other[0]}"'
        )
    if belongs.tokenizer != tokenizer:
        found.append("it was made with another tokenizer.json")
    if belongs.template != template:
        found.append("it was made with another chat_template.jinja")
    return found


def _read(kind: type[_Record], path: Path) -> _Record:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BundleError(f"{path} is larger than {MOST_BYTES} bytes; it is none of ours")
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path.name} is not valid JSON: {error}") from error
    record, problems = read_record(kind, value)
    if record is None:
        raise BundleError(f"{path.name} is malformed; make it again:", problems)
    return record
