"""A PEFT adapter: read, understood whole, or refused by name.

The update of a layer is s · B A (arXiv 2106.09685) with s = alpha / r, or alpha / √r with rsLoRA
(arXiv 2312.03732); AdaLoRA (arXiv 2303.10512) has singular values between B and A; DoRA (arXiv 2402.09353)
gives every output of the layer a length of its own afterwards. Beside updates, an adapter may hold biases
and whole modules that take the place of the base's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.weights import DTYPES, Checkpoint, Tensor, read_header, read_rows
from pipeline.adapter_config import CONFIG as CONFIG
from pipeline.adapter_config import AdapterConfig, listed, read_config
from pipeline.fingerprint import FINGERPRINT, Fingerprint, fingerprint, read_fingerprint
from pipeline.rows import row_blocks
from runtime.errors import AdapterError, CheckpointError

WEIGHTS = "adapter_model.safetensors"
HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<layer>.+)\.(?P<role>lora_(?:[ABE]|embedding_[AB]|magnitude_vector))(?P<rest>\.weight|\.bias)?"
)
_BIAS = "lora_B.bias"
_MAGNITUDE = "lora_magnitude_vector"
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that is understood. Its tensors are not read yet.

    Attributes:
        path: the folder.
        config: what shapes the update.
        tensors: headers of the adapter's tensors.
        base: fingerprint of the base it was trained on, where the folder has it.
    """

    path: Path
    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    base: Fingerprint | None


@dataclass(frozen=True)
class Factors:
    """A sum of rank r that is added to a matrix of shape (out, in), or to a bias of shape (out,).

    Attributes:
        b: B, of shape (out, r); of an embedding (in, r), of a bias (out,).
        a: A, of shape (r, in); of an embedding (r, out); a bias has none.
        e: AdaLoRA's singular values, of shape (r, 1).
        scale: s.
        embedding: whether the sum is that of an embedding, Aᵀ Bᵀ.
    """

    b: Tensor
    a: Tensor | None
    e: Tensor | None
    scale: float
    embedding: bool

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two factors of shapes (out, r) and (r, in) whose product is the sum, scale included."""
        b = read_values(self.b).astype(np.float64)
        if self.a is None:
            return b.reshape(-1, 1), np.full((1, 1), self.scale)
        a = read_values(self.a).astype(np.float64)
        if self.embedding:
            return a.T * self.scale, b.T
        return b * self.scale, a if self.e is None else a * read_values(self.e)


@dataclass(frozen=True)
class Update:
    """What an adapter does to one weight or bias.

    Attributes:
        target: name of the changed tensor.
        factors: what is added to it.
        magnitude: DoRA's lengths: one for each row, of an embedding one for each column.
    """

    target: str
    factors: Factors
    magnitude: Tensor | None


@dataclass(frozen=True)
class Parts:
    """Everything in an adapter, as far as it touches a base.

    Attributes:
        updates: of weights and biases, by the name of the tensor in the base; a bias that the base has not
            got is there as well.
        replaced: tensors that take the place of the base's, by the base's name.
    """

    updates: Mapping[str, Update]
    replaced: Mapping[str, Tensor]


def read_adapter(path: Path) -> Adapter:
    """Read an adapter folder's config and tensor headers.

    Raises:
        AdapterError: the folder is not a LoRA or AdaLoRA adapter in safetensors, or a field changes the
            update in a way that is not known here; every such field is named.
    """
    config = read_config(path)
    if not (path / WEIGHTS).is_file():
        if pickles := sorted(file.name for file in path.glob("*.bin")):
            raise AdapterError(
                f"{path} has its weights in {pickles[0]}, a pickle that can run code when it is opened; "
                "save the adapter with safe_serialization=True"
            )
        raise AdapterError(f"{path} has no {WEIGHTS}; save the adapter with PEFT's save_pretrained")
    try:
        tensors, _ = read_header(path / WEIGHTS)
        base = read_fingerprint(path / FINGERPRINT) if (path / FINGERPRINT).is_file() else None
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    return Adapter(path, config, tensors, base)


def read_values(tensor: Tensor) -> NDArray[np.float32]:
    """A whole tensor of an adapter, in float32."""
    values = np.fromfile(tensor.file, DTYPES[tensor.dtype], math.prod(tensor.shape), offset=tensor.offset)
    return values.reshape(tensor.shape).astype(np.float32)


def parts(adapter: Adapter, base: Checkpoint) -> Parts:
    """What the adapter does to which tensor of a base, in the order of the layers' names.

    Raises:
        AdapterError: adapter and base do not fit; the message lists every mismatch.
    """
    if adapter.base is not None:
        _refuse_other_base(adapter, adapter.base, fingerprint(base.directory))
    layers = {name.removesuffix(".weight"): name for name in base.names if name.endswith(".weight")}
    if HEAD not in layers and EMBEDDING in layers:
        layers[HEAD] = layers[EMBEDDING]
    factors, others = _sorted_out(adapter)
    updates: dict[str, Update] = {}
    problems: list[str] = []
    targeted = {layer for layer in layers if adapter.config.targets(layer)}
    for layer in sorted(factors.keys() | targeted):
        found = factors.get(layer, {})
        if layer not in layers:
            problems.append(f'"{layer}" is not a layer of the base, but has {" and ".join(sorted(found))}')
        elif layer not in targeted:
            problems.append(f'"{layer}" has factors, but target_modules does not name it')
        elif adapter.config.saves(layer):
            problems.append(f'"modules_to_save" and "target_modules" both name "{layer}"')
        elif misfits := list(_misfits(adapter.config, layer, found, base.shape(layers[layer]))):
            problems += misfits
        else:
            updates |= _updates(adapter.config, layer, found)
    if not targeted and not problems:
        problems.append("target_modules names no layer of the base")
    replaced, wrong = _replaced(adapter.config, base, targeted, others)
    problems += wrong
    if problems:
        raise AdapterError(listed(f"{adapter.path} does not fit {base.directory}:", problems))
    return Parts(updates, replaced)


def weighted(found: Parts, weight: float) -> Parts:
    """The same parts with every sum multiplied by a weight."""
    updates = {
        name: replace(update, factors=replace(update.factors, scale=weight * update.factors.scale))
        for name, update in found.updates.items()
    }
    return Parts(updates, found.replaced)


def _sorted_out(adapter: Adapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Layer → role → factor; and every other tensor, by its name in the base if it has one there."""
    factors: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in adapter.tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if key.startswith(_PREFIX) and match and (match["rest"] != ".bias" or match["role"] == "lora_B"):
            role = _BIAS if match["rest"] == ".bias" else match["role"]
            found = factors.setdefault(match["layer"], {})
            known = found.setdefault(role, tensor) is tensor
        else:
            plain = name.replace(".base_layer.", ".") if key.startswith(_PREFIX) else key
            known = others.setdefault(plain, tensor) is tensor
        if not known:  # a second spelling of one tensor: which of them PEFT takes is not for us to say
            others[key] = tensor
    return factors, others


def _shapes(config: AdapterConfig, layer: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Role → shape of the tensors that PEFT saves for one layer."""
    out, into = weight
    rank = config.rank(layer)
    shapes: dict[str, tuple[int, ...]] = {"lora_A": (rank, into), "lora_B": (out, rank)}
    if layer == EMBEDDING:
        shapes = {"lora_embedding_A": (rank, out), "lora_embedding_B": (into, rank)}
    if config.peft_type == "ADALORA":
        shapes["lora_E"] = (rank, 1)
    if config.use_dora:
        shapes[_MAGNITUDE] = (into if layer == EMBEDDING else out,)
    if config.lora_bias:
        shapes[_BIAS] = (out,)
    return shapes


def _misfits(
    config: AdapterConfig, layer: str, found: Mapping[str, Tensor], weight: tuple[int, ...]
) -> Iterator[str]:
    """How the factors of one layer differ from what its weight and the config ask for."""
    if len(weight) != 2:
        yield f'"{layer}" of the base is no matrix: its shape is {list(weight)}'
        return
    if layer == EMBEDDING and (config.peft_type == "ADALORA" or config.lora_bias):
        field = "lora_bias" if config.lora_bias else "peft_type"
        yield f'"{field}": PEFT cannot give an embedding such an update, but target_modules names "{layer}"'
        return
    wanted = _shapes(config, layer, weight)
    if lacking := [role for role in wanted if role not in found]:
        yield f'"{layer}" lacks {" and ".join(lacking)}'
    if extra := [role for role in found if role not in wanted]:
        yield f'"{layer}" has {" and ".join(extra)}, which its config does not ask for'
    for role, shape in wanted.items():
        if role in found:
            yield from _wrong(f'"{layer}" {role}', found[role], shape, "base and rank ask for")


def _wrong(called: str, tensor: Tensor, shape: tuple[int, ...], who: str) -> Iterator[str]:
    """What is the matter with one tensor of an adapter."""
    if tensor.shape != shape:
        turned = ", which is transposed" if tensor.shape == shape[::-1] else ""
        yield f"{called} is {list(tensor.shape)}{turned}; {who} {list(shape)}"
    if tensor.dtype not in _FLOATS:
        yield f"{called} is {tensor.dtype}; it must be {', '.join(_FLOATS)}"
        return
    try:
        for start, stop in row_blocks(tensor.shape):
            read_rows(tensor, called, start, stop)
    except CheckpointError:
        yield f"{called} has NaN or infinite values"


def _updates(config: AdapterConfig, layer: str, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Update]]:
    scale, embedding = config.scale(layer), layer == EMBEDDING
    kind = "lora_embedding_" if embedding else "lora_"
    factors = Factors(found[f"{kind}B"], found[f"{kind}A"], found.get("lora_E"), scale, embedding)
    yield f"{layer}.weight", Update(f"{layer}.weight", factors, found.get(_MAGNITUDE))
    if _BIAS in found:
        bias = Factors(found[_BIAS], None, None, scale, embedding=False)
        yield f"{layer}.bias", Update(f"{layer}.bias", bias, None)


def _replaced(
    config: AdapterConfig, base: Checkpoint, targeted: set[str], others: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the adapter that take the place of the base's, and what is wrong with them.

    PEFT also saves the embedding and the head of the base as they are when it gives them an update.
    """
    shapes = {name: base.shape(name) for name in base.names}
    if f"{EMBEDDING}.weight" in shapes:
        shapes.setdefault(f"{HEAD}.weight", shapes[f"{EMBEDDING}.weight"])
    wanted: dict[str, str] = {}
    for name in shapes:
        layer, _, kind = name.rpartition(".")
        if config.saves(layer):
            wanted[name] = "modules_to_save"
        elif kind == "bias" and (config.bias == "all" or (config.bias == "lora_only" and layer in targeted)):
            wanted[name] = "bias"
    lacking = [name for name in wanted if name not in others]
    problems = [f'"{name}" is missing, which {wanted[name]} asks for' for name in lacking]
    if config.modules_to_save and "modules_to_save" not in wanted.values():
        problems.append(f'"modules_to_save": {config.modules_to_save} names no layer of the base')
    replaced: dict[str, Tensor] = {}
    for name, tensor in others.items():
        if name not in shapes:
            problems.append(f'"{name}" is no tensor of the base, and not a LoRA factor that is known here')
        elif name in wanted:
            problems += _wrong(f'"{name}"', tensor, shapes[name], "the base has")
            replaced[name] = tensor
        elif wrong := list(_wrong(f'"{name}"', tensor, shapes[name], "the base has")):
            problems += wrong
        elif not _same(base, name, tensor):
            problems.append(
                f'"{name}" is not the base\'s, and neither modules_to_save nor bias says that it was trained'
            )
    return replaced, problems


def _same(base: Checkpoint, name: str, tensor: Tensor) -> bool:
    stored = base.tensor(name if name in base.names else f"{EMBEDDING}.weight")
    return all(
        np.array_equal(
            read_rows(stored, name, *rows).astype(np.float32),
            read_rows(tensor, name, *rows).astype(np.float32),
        )
        for rows in row_blocks(tensor.shape)
    )


def _refuse_other_base(adapter: Adapter, trained_on: Fingerprint, given: Fingerprint) -> None:
    if trained_on.digest == given.digest:
        return
    names = sorted(trained_on.tensors.keys() | given.tensors.keys())
    other = [name for name in names if trained_on.tensors.get(name) != given.tensors.get(name)]
    raise AdapterError(
        f"{adapter.path} was trained on another base: {len(other)} of {len(names)} tensors differ, "
        f'the first is "{other[0]}"; merge it onto the base it was trained on'
    )
