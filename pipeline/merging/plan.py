"""What every tensor of the merged checkpoint is made of, decided before a byte is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.architecture import SUPPORTED, read_config
from export.weights import DTYPES, Checkpoint, Tensor
from pipeline.adapter import EMBEDDING, HEAD, Adapter, Factors, Parts, Update, parts, read_adapter, weighted
from pipeline.adapter_config import listed
from pipeline.nf4 import whole_blocks
from pipeline.rows import row_blocks
from runtime.errors import AdapterError, CheckpointError

Onto = Literal["base", "nf4"]
"""What an update is added to: W0, or W0 rounded to NF4 and back."""

PRECISIONS = ("float32", "float16", "bfloat16")

_HEAD, _EMBEDDING = f"{HEAD}.weight", f"{EMBEDDING}.weight"
_BIAS_FIELDS = {
    "attention_bias": (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        ("LlamaForCausalLM", "Qwen3ForCausalLM"),
    ),
    "mlp_bias": (("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ("LlamaForCausalLM",)),
}
"""Field of config.json → layers that have a bias when it is set, and the architectures that know it."""


@dataclass(frozen=True)
class Merged:
    """One tensor of the merged checkpoint: start + Σ factors, and lengths where DoRA has them.

    Attributes:
        name: of the tensor.
        dtype: element type that it is stored in, the base's.
        shape: of the tensor.
        start: where the values lie that sums are added to, in the base or in an adapter; None is zeros.
        quantized: whether those are rounded to NF4 and back first.
        factors: what is added.
        magnitude: DoRA's lengths, of rows, of an embedding of columns.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: Tensor | None
    quantized: bool
    factors: tuple[Factors, ...]
    magnitude: Tensor | None

    @property
    def copied(self) -> bool:
        """Whether its bytes are those of `start`."""
        same = self.start is not None and DTYPES[self.start.dtype] == self.dtype
        return same and not self.quantized and not self.factors

    @property
    def per_column(self) -> bool:
        """Whether `magnitude` has a length for each column."""
        return any(factors.embedding for factors in self.factors)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that can be worked on one by one."""
        return whole_blocks(self.shape) if self.quantized else row_blocks(self.shape)


@dataclass(frozen=True)
class Plan:
    """The merged checkpoint before it is written.

    Attributes:
        tensors: by name; the base's in the order of its files, and behind them what the base has not got.
        changed: names of those that an adapter has changed or brought.
        settings: fields of config.json that are not the base's any more.
    """

    tensors: Mapping[str, Merged]
    changed: frozenset[str]
    settings: Mapping[str, Any]


def plan(base: Checkpoint, adapters: Sequence[tuple[Path, float]], onto: Onto) -> Plan:
    """Decide what becomes of each tensor when adapters are merged, each times its weight.

    Raises:
        CheckpointError: an update falls on a tensor that is not float32, float16 or bfloat16.
        AdapterError: an adapter is not understood, does not fit the base, or holds what cannot be added to
            other adapters or kept in a checkpoint of the base's architecture.
    """
    config = read_config(base.directory) if (base.directory / "config.json").is_file() else {}
    found: list[Parts] = []
    for path, weight in adapters:
        adapter = read_adapter(path)
        _refuse_turned(adapter, config)
        each = parts(adapter, base)
        if len(adapters) > 1 or weight != 1.0:
            _refuse_unless_a_sum(adapter, each)
        found.append(weighted(each, weight))
    updates: dict[str, list[Update]] = {}
    for each in found:
        for name, update in each.updates.items():
            updates.setdefault(name, []).append(update)
    replaced = {name: tensor for each in found for name, tensor in each.replaced.items()}
    made, settings = _new_biases(base, config, updates, adapters)
    names = [*base.names, *made]
    own = {_HEAD, _EMBEDDING} & (updates.keys() | replaced.keys())
    if own and _HEAD not in base.names and (own != {_EMBEDDING} or config.get("tie_word_embeddings") is True):
        names.append(_HEAD)
    if own and config.get("tie_word_embeddings"):
        settings["tie_word_embeddings"] = False
    if onto == "nf4":
        _refuse_unknown_layers(config)
    tensors = {name: _merged(base, name, made, updates.get(name, []), replaced, onto) for name in names}
    for tensor in tensors.values():
        if not tensor.copied and tensor.dtype.name not in PRECISIONS:
            raise CheckpointError(
                f'tensor "{tensor.name}" is {tensor.dtype}; an update can be added to {", ".join(PRECISIONS)}'
            )
    changed = frozenset(
        name for name, each in tensors.items() if each.factors or each.start is None or name in replaced
    )
    return Plan(tensors, changed, settings)


def _merged(
    base: Checkpoint,
    name: str,
    made: Mapping[str, str],
    updates: Sequence[Update],
    replaced: Mapping[str, Tensor],
    onto: Onto,
) -> Merged:
    if name in made:
        weight = base.tensor(made[name])
        start, dtype, shape = None, DTYPES[weight.dtype], weight.shape[:1]
    else:
        original = base.tensor(name if name in base.names else _EMBEDDING)
        start, dtype, shape = replaced.get(name, original), DTYPES[original.dtype], original.shape
    linear = len(shape) == 2 and name.endswith(".weight") and name not in (_HEAD, _EMBEDDING)
    magnitude = next((update.magnitude for update in updates if update.magnitude), None)
    return Merged(
        name=name,
        dtype=dtype,
        shape=shape,
        start=start,
        quantized=onto == "nf4" and linear and name not in replaced,
        factors=tuple(update.factors for update in updates if update.factors.b.shape[-1] > 0),
        magnitude=magnitude,
    )


def _new_biases(
    base: Checkpoint,
    config: Mapping[str, object],
    updates: Mapping[str, Sequence[Update]],
    adapters: Sequence[tuple[Path, float]],
) -> tuple[dict[str, str], dict[str, Any]]:
    """Biases that the merged checkpoint has and the base has not, by the weight beside them; and the fields
    of config.json that say so. The field gives every layer of its kind a bias: those without an update
    get zeros.
    """
    wanted = {name for name in updates if name.endswith(".bias") and name not in base.names}
    made: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for field, (layers, architectures) in _BIAS_FIELDS.items():
        endings = tuple(f".{layer}.bias" for layer in layers)
        if _architecture(config) in architectures and any(name.endswith(endings) for name in wanted):
            settings[field] = True
            weights = {f"{name.removesuffix('.weight')}.bias": name for name in base.names}
            made |= {name: weight for name, weight in weights.items() if name.endswith(endings)}
    if homeless := sorted(wanted - made.keys()):
        raise AdapterError(
            listed(
                f'"lora_bias" of {", ".join(str(path) for path, _ in adapters)}: '
                f"{_architecture(config) or 'the base'} cannot hold these biases:",
                homeless,
            )
        )
    return {name: weight for name, weight in made.items() if name not in base.names}, settings


def _architecture(config: Mapping[str, object]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _refuse_turned(adapter: Adapter, config: Mapping[str, object]) -> None:
    """PEFT ignores `fan_in_fan_out` where layers are torch's Linear, as in every architecture known here."""
    if adapter.config.fan_in_fan_out and _architecture(config) not in SUPPORTED:
        raise AdapterError(
            f'"fan_in_fan_out" of {adapter.path}: how {_architecture(config) or "the base"} lays out its '
            f"weights is not known; known: {', '.join(SUPPORTED)}"
        )


def _refuse_unknown_layers(config: Mapping[str, object]) -> None:
    if _architecture(config) not in SUPPORTED:
        raise CheckpointError(
            f"which weights of {_architecture(config) or 'the base'} are kept in NF4 is not known; "
            f"known: {', '.join(SUPPORTED)}"
        )


def _refuse_unless_a_sum(adapter: Adapter, found: Parts) -> None:
    """DoRA's lengths and replaced tensors have no sum with those of another adapter."""
    fields = {
        "use_dora": adapter.config.use_dora,
        "bias": any(name.endswith(".bias") for name in found.replaced) and adapter.config.bias != "none",
        "modules_to_save": bool(adapter.config.modules_to_save),
    }
    if stated := [f'"{field}"' for field, is_set in fields.items() if is_set]:
        raise AdapterError(
            f"{adapter.path} has {' and '.join(stated)}, which cannot be weighted or added to another "
            "adapter; merge it alone, with weight 1"
        )
