"""A checkpoint's decoder, one layer in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from export.architecture import Architecture, read_architecture
from export.shapes import EMBEDDING, HEAD
from export.weights import Checkpoint
from pipeline.quiet import quiet_transformers
from runtime.errors import CheckpointError


@dataclass(frozen=True)
class Site:
    """Matrices that read the same input, and so are stored and rounded as one.

    Attributes:
        name: of the stacked matrix, as `export.graph` stores it.
        modules: of a layer, from its own name on, such as `mlp.up_proj`; stacked in this order.
    """

    name: str
    modules: tuple[str, ...]


SITES = (
    Site("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Site("self_attn.o_proj", ("self_attn.o_proj",)),
    Site("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    Site("mlp.down_proj", ("mlp.down_proj",)),
)


class Layers:
    """The layers of a checkpoint of the Llama family, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        """Read the shape.

        Raises:
            CheckpointError: the checkpoint is damaged.
            ExportError: its architecture is not one that our graph is drawn of.
        """
        self.architecture: Architecture = read_architecture(checkpoint)
        self.tensors = Checkpoint(checkpoint)
        try:
            with quiet_transformers():
                self._config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot load {checkpoint}: {error}") from error
        self._of_kind: dict[str, PreTrainedModel] = {}

    def embedded(self, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Token ids (B, S) → what the first layer reads, (B, S, hidden)."""
        rows = torch.from_numpy(self.tensors.read_float32(EMBEDDING))
        return [rows[each] for each in ids]

    def head(self) -> torch.Tensor:
        """The matrix [V, hidden] behind the last norm: the embedding, where they are tied."""
        return torch.from_numpy(self.tensors.read_float32(EMBEDDING if self.architecture.tied else HEAD))

    def normalized(self, stream: torch.Tensor) -> torch.Tensor:
        """What the head reads, of the residual stream behind the last layer; RMSNorm (arXiv 1910.07467)."""
        weight = torch.from_numpy(self.tensors.read_float32("model.norm.weight"))
        mean = stream.square().mean(dim=-1, keepdim=True)
        return stream * torch.rsqrt(mean + self.architecture.norm_epsilon) * weight

    def layer(self, number: int) -> Layer:
        """One layer with its weights; the one that was asked for before is overwritten."""
        kinds = getattr(self._config, "layer_types", None) or ["every layer"]
        kind = kinds[number % len(kinds)]
        if kind not in self._of_kind:
            self._of_kind[kind] = self._alone(kind)
        model = self._of_kind[kind]
        layer = model.get_submodule("layers.0")
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                values = self.tensors.read_float32(f"model.layers.{number}.{name}")
                parameter.copy_(torch.from_numpy(values))
        return Layer(number, model, dict(layer.named_modules()))

    def _alone(self, kind: str) -> PreTrainedModel:
        """A model of one layer of this kind, behind which no norm stands."""
        config = copy.deepcopy(self._config)
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = [kind]
        # An embedding that nothing reads: layers are given what it would have put out.
        config.vocab_size, config.pad_token_id = 1, None
        model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
        model.norm = torch.nn.Identity()
        model.train(False)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model


@dataclass(frozen=True)
class Layer:
    """One layer, in memory until the next is asked for."""

    number: int
    model: PreTrainedModel
    modules: Mapping[str, torch.nn.Module]

    def run(self, stream: torch.Tensor) -> torch.Tensor:
        """The residual stream (B, S, hidden) before the layer → behind it."""
        behind: torch.Tensor = self.model(inputs_embeds=stream, use_cache=False).last_hidden_state
        return behind

    def linears(self, site: Site) -> list[torch.nn.Linear]:
        """The modules of a site."""
        found = [self.modules[name] for name in site.modules]
        return [module for module in found if isinstance(module, torch.nn.Linear)]

    def full_name(self, site: Site) -> str:
        """Of the stacked matrix in the whole model."""
        return f"model.layers.{self.number}.{site.name}.weight"
