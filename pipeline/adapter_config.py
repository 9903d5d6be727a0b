"""The fields of `adapter_config.json`: what each means for the update, or that it is refused by its name.

An ignored field is a merged model that nobody trained. So a field that changes the function in a way that
is not known here, whatever its name, must be switched off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import AdapterError

CONFIG = "adapter_config.json"

WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "runtime_config",  # on which device DoRA's initial norms are computed
        "eva_config",  # initial values of A; W0 stays
        "megatron_core",  # a module's name, read only when megatron_config is set
        "qalora_group_size",  # read only when use_qalora is set
    }
)
"""Fields that name or describe, or that act in training alone."""

ADALORA_SCHEDULE = frozenset(
    {"target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"}
)
"""How AdaLoRA's ranks were chosen while it was trained; what came of it is in the tensors."""

_NUMBERED = r".*?\.[^.]*\.(\d+)\."
_RANKNUM_MARGIN = 1e-5

_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Names = list[str] | str
_Value = TypeVar("_Value")


class AdapterConfig(BaseModel):
    """The fields that shape the update, with PEFT's meaning and defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peft_type: Literal["LORA", "ADALORA"]
    r: int
    lora_alpha: _Alpha
    init_r: _Rank = 12
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, _Rank] | dict[str, list[bool]] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    target_modules: Names
    exclude_modules: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    # The other initial values that PEFT knows (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract the initial
    # update from W0, so that the adapter belongs to a base that nobody has.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva", "mica"] = True

    @model_validator(mode="after")
    def _rank_is_one(self) -> AdapterConfig:
        if self.peft_type == "LORA" and self.r < 1:
            raise ValueError(f'"r": {self.r}: a rank is a whole number from 1 up')
        lists = any(isinstance(value, list) for value in (self.rank_pattern or {}).values())
        if self.rank_pattern and lists != (self.peft_type == "ADALORA"):
            wanted = "a list of the ranks kept" if self.peft_type == "ADALORA" else "a rank"
            raise ValueError(f'"rank_pattern": with {self.peft_type} each layer has {wanted}')
        return self

    @model_validator(mode="after")
    def _variants_go_together(self) -> AdapterConfig:
        for field in ("use_dora", "lora_bias"):
            if self.peft_type == "ADALORA" and getattr(self, field):
                raise ValueError(f'"{field}": AdaLoRA has no such thing')
        if self.use_dora and self.lora_bias:
            raise ValueError('"lora_bias": DoRA has no such thing')
        return self

    @model_validator(mode="after")
    def _patterns_compile(self) -> AdapterConfig:
        whole = [names for names in (self.target_modules, self.exclude_modules) if isinstance(names, str)]
        ranks = () if self.peft_type == "ADALORA" else self.rank_pattern or ()
        saved = self.modules_to_save or ()
        for pattern in (*whole, *ranks, *(self.alpha_pattern or ()), *self._stacks(), *saved):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f'"{pattern}" is no regular expression: {error}') from None
        return self

    def rank(self, layer: str) -> int:
        """Rank of a layer's factors: that of the first pattern that the layer's name ends with.

        AdaLoRA's pattern has whole names, and says which of the initial ranks were kept; it may be none.
        """
        if self.peft_type == "ADALORA":
            kept = (self.rank_pattern or {}).get(f"{layer}.lora_E")
            return sum(kept) if isinstance(kept, list) else self.init_r
        found = next(_matching(self.rank_pattern, layer), self.r)
        assert isinstance(found, int)
        return found

    def scale(self, layer: str) -> float:
        """s of a layer.

        AdaLoRA (arXiv 2303.10512) divides by the rank it began with, and PEFT ignores its patterns of
        alpha there and rsLoRA.
        """
        if self.peft_type == "ADALORA":
            return self.lora_alpha / (self.init_r + _RANKNUM_MARGIN)
        alpha, rank = next(_matching(self.alpha_pattern, layer), self.lora_alpha), self.rank(layer)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, layer: str) -> bool:
        """Whether PEFT gives the layer an update."""
        if self.exclude_modules and _named(self.exclude_modules, layer):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", layer) for name in self.modules_to_save or ()):
            return False
        if isinstance(self.target_modules, str) or layer in self.target_modules:
            return _named(self.target_modules, layer)
        return _named(self.target_modules, layer) and self._in_chosen_layers(layer)

    def saves(self, layer: str) -> bool:
        """Whether PEFT trains a copy of the layer as a whole: one of the modules it is in is named.

        PEFT compares the ends of names, and not only whole parts: "norm" names "input_layernorm".
        """
        parts = layer.split(".")
        modules = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(module.endswith(name) for module in modules for name in self.modules_to_save or ())

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


def read_config(path: Path) -> AdapterConfig:
    """Read the config of an adapter folder.

    Raises:
        AdapterError: there is none, or fields of it are not understood; every such field is named.
    """
    file = path / CONFIG
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is no adapter: it has no {CONFIG}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"cannot read {file}: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"{file} is not a JSON object")
    known = AdapterConfig.model_fields.keys() | WITHOUT_EFFECT
    if fields.get("peft_type") == "ADALORA":
        known |= ADALORA_SCHEDULE
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
        raise AdapterError(listed(f"{file} is not understood:", dict.fromkeys(problems)))
    return config


def listed(heading: str, problems: Iterable[str]) -> str:
    """A heading and one line for each problem."""
    return "\n".join((heading, *(f"  - {problem}" for problem in problems)))


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
