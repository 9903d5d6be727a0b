"""A checkpoint in torch, eager: the unmerged model that everything is measured against, and the merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.data.packing import common_prefix
from pipeline.evidence.form import Conversation, Logits, Output, padded
from pipeline.quiet import quiet_transformers
from runtime.errors import CheckpointError

BATCH_TOKENS = 16_384
"""Tokens, answers included, of the prompts answered together: a bound on the cache's memory."""


class TorchModel:
    """A base with its adapter as trained, never merged, or a checkpoint alone."""

    def __init__(
        self, checkpoint: Path, adapter: Path | None, threads: int, dtype: Literal["float32", "float64"]
    ) -> None:
        """Load it.

        Raises:
            CheckpointError: checkpoint or adapter cannot be loaded.
        """
        torch.set_num_threads(threads)
        try:
            with quiet_transformers():
                model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                    checkpoint,
                    dtype=getattr(torch, dtype),
                    attn_implementation="eager",
                    use_safetensors=True,
                    local_files_only=True,
                )
                self._model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
        except (OSError, ValueError, RuntimeError) as error:
            beside = "" if adapter is None else f" with the adapter {adapter}"
            raise CheckpointError(f"cannot load {checkpoint}{beside}: {error}") from error
        self._model.train(False)
        # PEFT puts its layers into the very model it was given, so the names below are the same in both.
        self._plain = model

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self._plain.config.vocab_size)

    @torch.inference_mode()
    def logits(self, conversations: Sequence[Conversation]) -> list[Logits]:
        """Logits (positions, V) at the counted positions of each conversation, in this model's type."""
        ids, _ = padded(conversations)
        first = min(conversation.start for conversation in conversations) - 1
        kept = torch.arange(first, ids.shape[1])
        out = self._model(input_ids=torch.from_numpy(ids), use_cache=False, logits_to_keep=kept)
        return [
            np.asarray(logits[one.start - 1 - first : len(one.tokens) - 1 - first].float().numpy())
            for logits, one in zip(out.logits, conversations, strict=True)
        ]

    @torch.inference_mode()
    def outputs(self, tokens: Sequence[int]) -> list[Output]:
        """What embedding, norms and projections put out, those that read the same input side by side."""
        with _watched(self._plain) as found:
            self._model(input_ids=torch.tensor([tokens]), use_cache=False, logits_to_keep=1)
        return found

    @torch.inference_mode()
    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        stop: int,
        max_new_tokens: int,
        hopeless: Callable[[Sequence[int]], bool],
        *,
        adapter: bool = True,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[int]]:
        """Greedy answers, without the stop token.

        Args:
            prompts: token ids of each prompt.
            stop: the token that ends an answer.
            max_new_tokens: longest answer.
            hopeless: told an unfinished answer; True abandons it, since no continuation can be right.
            adapter: False answers with the bare base.
            progress: told the number of prompts done.
        """
        # Prompts of like length are answered together, so that little of a batch is padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found: list[list[int]] = [[] for _ in prompts]
        model = self._model
        bare = model.disable_adapter() if isinstance(model, PeftModel) and not adapter else nullcontext()
        with quiet_transformers(), bare:
            prefix = common_prefix([tuple(prompt) for prompt in prompts])
            together = max(1, BATCH_TOKENS // (max(map(len, prompts)) + max_new_tokens))
            for at in range(0, len(order), together):
                chosen = order[at : at + together]
                own = [prompts[index][len(prefix) :] for index in chosen]
                batch = self._batch(prefix, own, stop, max_new_tokens, hopeless)
                for index, answer in zip(chosen, batch, strict=True):
                    found[index] = answer
                progress(min(at + together, len(order)))
        return found

    def _batch(
        self,
        prefix: Sequence[int],
        prompts: Sequence[Sequence[int]],
        stop: int,
        max_new_tokens: int,
        hopeless: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        """Answers to prompts that begin alike: `prefix` is computed once, `prompts` go on behind it."""
        past = None
        if prefix:
            past = self._model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
            past.batch_repeat_interleave(len(prompts))
        width = max(map(len, prompts))
        ids = torch.tensor([[stop] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor(
            [[1] * len(prefix) + [0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        answers: list[list[int]] = [[] for _ in prompts]
        asked = list(range(len(prompts)))  # whose answer each row of the batch is
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, len(prefix) :]
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        for _ in range(max_new_tokens):
            chosen, past = out.logits[:, -1].argmax(dim=-1), out.past_key_values
            going: list[int] = []
            for row, index in enumerate(asked):
                token = int(chosen[row])
                if token != stop:
                    answers[index].append(token)
                    if not hopeless(answers[index]):
                        going.append(row)
            if not going:
                break
            if len(going) < len(asked):
                rows = torch.tensor(going)
                asked = [asked[row] for row in going]
                chosen, mask = chosen[rows], mask[rows]
                past.batch_select_indices(rows)
            mask = torch.cat([mask, torch.ones(len(asked), 1, dtype=mask.dtype)], dim=1)
            out = self._model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=past,
                use_cache=True,
            )
        return answers


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[Output]]:
    """Collect the outputs of a Llama-shaped model's modules; of another model, those it has."""
    found: list[Output] = []
    modules = dict(model.named_modules())
    hooks: list[RemovableHandle] = []

    def note(layer: int | None, site: str, *names: str, inputs: bool = False) -> None:
        if not all(name in modules for name in names):
            return
        parts: list[torch.Tensor] = []
        kind = "input of " if inputs else ""
        operator = kind + type(modules[names[0]]).__name__

        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            parts.append((args[0] if inputs else out)[0].float())
            if len(parts) == len(names):
                found.append(Output(layer, site, operator, np.asarray(torch.cat(parts, dim=-1).numpy())))
                parts.clear()

        hooks.extend(modules[name].register_forward_hook(hook) for name in names)

    note(None, "embedding", "model.embed_tokens")
    for layer in range(int(model.config.num_hidden_layers)):
        at = f"model.layers.{layer}"
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        note(layer, "attention.input", f"{at}.input_layernorm")
        note(layer, "attention.qkv", *(f"{attention}.{part}_proj" for part in "qkv"))
        note(layer, "attention.mixed", f"{attention}.o_proj", inputs=True)
        note(layer, "attention.output", f"{attention}.o_proj")
        note(layer, "mlp.input", f"{at}.post_attention_layernorm")
        note(layer, "mlp.gate_up", f"{mlp}.gate_proj", f"{mlp}.up_proj")
        note(layer, "mlp.product", f"{mlp}.down_proj", inputs=True)
        note(layer, "mlp.output", f"{mlp}.down_proj")
    note(None, "hidden_states", "model.norm")
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()
