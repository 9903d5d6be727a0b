"""A PEFT LoRA adapter: read, understood whole, or refused by name.

The update of a layer is s · B A (arXiv 2106.09685) with s = alpha / r, or alpha / √r with rsLoRA
(arXiv 2312.03732). Fields of `adapter_config.json` that change this function in a way that is not known
here are refused, whatever their name: an ignored field is a merged model that nobody trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.weights import DTYPES, Checkpoint, Tensor, read_header
from pipeline.fingerprint import FINGERPRINT, Fingerprint, fingerprint, read_fingerprint
from runtime.errors import AdapterError, CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_NUMBERED = r".*?\.[^.]*\.(\d+)\."
_FACTOR_TYPES = ("F32", "F16", "BF16")

# Fields that name or describe, or that act in training alone. Any other field that `AdapterConfig` does not
# have must be switched off.
_WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "eva_config",  # initial values of A; W0 stays
        "megatron_core",  # a module's name, read only when megatron_config is set
        "qalora_group_size",  # read only when use_qalora is set
    }
)

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Names = list[str] | str
_Value = TypeVar("_Value")


class AdapterConfig(BaseModel):
    """The fields of `adapter_config.json` that shape the update, with PEFT's meaning and defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: Names
    exclude_modules: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | None = None
    bias: Literal["none"] = "none"
    # The other initial values that PEFT knows (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract the initial
    # update from W0, so that the adapter belongs to a base that nobody has.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True

    @model_validator(mode="after")
    def _patterns_compile(self) -> AdapterConfig:
        whole = [names for names in (self.target_modules, self.exclude_modules) if isinstance(names, str)]
        for pattern in (*whole, *(self.rank_pattern or ()), *(self.alpha_pattern or ()), *self._stacks()):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'"{pattern}" is no regular expression: {error}') from None
        return self

    def rank(self, layer: str) -> int:
        """r of a layer: that of the first pattern that the layer's name ends with."""
        return next(_matching(self.rank_pattern, layer), self.r)

    def scale(self, layer: str) -> float:
        """s of a layer."""
        alpha, rank = next(_matching(self.alpha_pattern, layer), self.lora_alpha), self.rank(layer)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, layer: str) -> bool:
        """Whether PEFT gives the layer an update."""
        if self.exclude_modules and _named(self.exclude_modules, layer):
            return False
        if isinstance(self.target_modules, str) or layer in self.target_modules:
            return _named(self.target_modules, layer)
        return _named(self.target_modules, layer) and self._in_chosen_layers(layer)

    def _in_chosen_layers(self, layer: str) -> bool:
        chosen = self.layers_to_transform
        if chosen is None or chosen == []:
            return True
        rules = [rf"(?:^|.*?\.){stack}\.(\d+)\." for stack in self._stacks()] or [_NUMBERED]
        found = next((match for rule in rules if (match := re.match(rule, layer))), None)
        return found is not None and int(found[1]) in ([chosen] if isinstance(chosen, int) else chosen)

    def _stacks(self) -> list[str]:
        """Names of the module lists whose numbers `layers_to_transform` counts; none means any."""
        stacks = self.layers_pattern or []
        return [stacks] if isinstance(stacks, str) else stacks


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
class Update:
    """What an adapter adds to one weight: W0 + scale · B A.

    Attributes:
        target: name of the merged tensor, of shape (out, in).
        source: name of the base's tensor that W0 is; another name only for a head tied to the embedding.
        a: name of A, of shape (rank, in).
        b: name of B, of shape (out, rank).
        rank: r.
        scale: s.
    """

    target: str
    source: str
    a: str
    b: str
    rank: int
    scale: float


def read_adapter(path: Path) -> Adapter:
    """Read an adapter folder's config and tensor headers.

    Raises:
        AdapterError: the folder is not a LoRA adapter in safetensors, or a field changes the update in a
            way that is not known here; every such field is named.
    """
    config = _read_config(path)
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


def updates(adapter: Adapter, base: Checkpoint) -> tuple[Update, ...]:
    """What the adapter adds to which weight of a base, in the order of the layers' names.

    Raises:
        AdapterError: adapter and base do not fit; the message lists every mismatch.
    """
    if adapter.base is not None:
        _refuse_other_base(adapter, adapter.base, fingerprint(base.directory))
    weights = {name.removesuffix(".weight"): name for name in base.names if name.endswith(".weight")}
    if HEAD not in weights and EMBEDDING in weights:
        weights[HEAD] = weights[EMBEDDING]
    factors: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for name in adapter.tensors:
        if match := _KEY.fullmatch(name):
            factors.setdefault(match["layer"], {})[match["factor"]] = name
        else:
            problems.append(f'"{name}" is not a LoRA factor that is known here')
    found: list[Update] = []
    targeted = {layer for layer in weights if adapter.config.targets(layer)}
    for layer in sorted(factors.keys() | targeted):
        pair = factors.get(layer, {})
        rank, scale = adapter.config.rank(layer), adapter.config.scale(layer)
        if layer not in weights:
            problems.append(f'"{layer}" is not a layer of the base')
        elif layer not in targeted:
            problems.append(f'"{layer}" has factors, but target_modules does not name it')
        elif lacking := [factor for factor in "AB" if factor not in pair]:
            problems.append(f'"{layer}" lacks lora_{" and lora_".join(lacking)}')
        elif misfits := list(_misfits(adapter, layer, pair, rank, base.shape(weights[layer]))):
            problems += misfits
        else:
            found.append(Update(f"{layer}.weight", weights[layer], pair["A"], pair["B"], rank, scale))
    if not found and not problems:
        problems.append("target_modules names no layer of the base")
    if problems:
        raise AdapterError(_listed(f"{adapter.path} does not fit {base.directory}:", problems))
    return tuple(found)


def read_factor(tensor: Tensor) -> NDArray[np.float32]:
    """A or B, in float32."""
    values = np.fromfile(tensor.file, DTYPES[tensor.dtype], math.prod(tensor.shape), offset=tensor.offset)
    return values.reshape(tensor.shape).astype(np.float32)


def _misfits(
    adapter: Adapter, layer: str, pair: Mapping[str, str], rank: int, weight: tuple[int, ...]
) -> Iterator[str]:
    """How the factors of one layer differ from what its weight and rank ask for."""
    if len(weight) != 2:
        yield f'"{layer}" of the base is no matrix: its shape is {list(weight)}'
        return
    for factor, wanted in (("A", (rank, weight[1])), ("B", (weight[0], rank))):
        tensor = adapter.tensors[pair[factor]]
        if tensor.shape != wanted:
            yield f'"{layer}" lora_{factor} is {list(tensor.shape)}; base and rank ask for {list(wanted)}'
        if tensor.dtype not in _FACTOR_TYPES:
            yield f'"{layer}" lora_{factor} is {tensor.dtype}; factors must be {", ".join(_FACTOR_TYPES)}'
        elif not np.isfinite(read_factor(tensor)).all():
            yield f'"{layer}" lora_{factor} has NaN or infinite values'


def _refuse_other_base(adapter: Adapter, trained_on: Fingerprint, given: Fingerprint) -> None:
    if trained_on.digest == given.digest:
        return
    names = sorted(trained_on.tensors.keys() | given.tensors.keys())
    other = [name for name in names if trained_on.tensors.get(name) != given.tensors.get(name)]
    raise AdapterError(
        f"{adapter.path} was trained on another base: {len(other)} of {len(names)} tensors differ, "
        f'the first is "{other[0]}"; merge it onto the base it was trained on'
    )


def _read_config(path: Path) -> AdapterConfig:
    file = path / CONFIG
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is no adapter: it has no {CONFIG}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"cannot read {file}: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"{file} is not a JSON object")
    known = AdapterConfig.model_fields.keys() | _WITHOUT_EFFECT
    problems = [
        f'"{key}": {json.dumps(value)} changes the adapter in a way that is not supported'
        for key, value in fields.items()
        if value and key not in known
    ]
    try:
        config = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][:1])
            value = f": {json.dumps(fields[key])}" if key in fields else ""
            problems.append(f'"{key}"{value}: {problem["msg"]}' if key else problem["msg"])
    if problems:
        raise AdapterError(_listed(f"{file} is not understood:", list(dict.fromkeys(problems))))
    return config


def _matching(patterns: Mapping[str, _Value] | None, layer: str) -> Iterator[_Value]:
    """Values of the patterns that match a layer's name or its end after a dot, PEFT's rule, in order."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            yield value


def _named(names: Names, layer: str) -> bool:
    """PEFT's rule: a string is a pattern for the whole name; a list has whole names or their ends."""
    if isinstance(names, str):
        return re.fullmatch(names, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _listed(heading: str, problems: Iterable[str]) -> str:
    return "\n".join((heading, *(f"  - {problem}" for problem in problems)))
