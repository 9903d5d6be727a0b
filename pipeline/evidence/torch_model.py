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
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from pipeline.data.packing import common_prefix
from pipeline.evidence.form import Conversation, Logits, Output, alike, padded
from pipeline.quiet import quiet_transformers
from runtime.errors import CheckpointError

BATCH_TOKENS = 16_384
"""Tokens, answers included, of the prompts answered together: a bound on the cache's memory."""

VERIFIED_TOKENS = 768
"""Tokens of the drafts verified together: their logits are in memory."""


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
        """Logits (positions, V) at the counted positions of each conversation.

        What all conversations begin with is computed once.
        """
        first = min(conversation.start for conversation in conversations) - 1
        shared = common_prefix([conversation.tokens[:first] for conversation in conversations])
        ids, _ = padded(conversations)
        begun = len(shared)
        kept = torch.arange(first - begun, ids.shape[1] - begun)
        with quiet_transformers():
            out = self._model(
                input_ids=torch.from_numpy(ids[:, begun:]),
                past_key_values=self._begun(shared, len(conversations)),
                use_cache=bool(shared),
                logits_to_keep=kept,
            )
        return [
            np.asarray(logits[one.start - 1 - first : len(one.tokens) - 1 - first].float().numpy())
            for logits, one in zip(out.logits, conversations, strict=True)
        ]

    def _begun(self, tokens: Sequence[int], rows: int) -> DynamicCache | None:
        """The cache behind some tokens, for a batch of so many rows; none for no tokens."""
        if not tokens:
            return None
        past: DynamicCache = self._model(input_ids=torch.tensor([tokens]), use_cache=True).past_key_values
        past.batch_repeat_interleave(rows)
        return past

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
        drafts: Sequence[Sequence[int]] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[int]]:
        """Greedy answers, without the stop token.

        Args:
            prompts: token ids of each prompt.
            stop: the token that ends an answer.
            max_new_tokens: longest answer.
            hopeless: told an unfinished answer; True abandons it, since no continuation can be right.
            adapter: False answers with the bare base.
            drafts: of each prompt an answer that is likely. What greedy decoding would say of it is found
                in one pass (arXiv 2211.17192, with a draft for free); it changes how long this takes alone.
            progress: told the number of prompts done.
        """
        model = self._model
        bare = model.disable_adapter() if isinstance(model, PeftModel) and not adapter else nullcontext()
        with quiet_transformers(), bare:
            answers = self._agreed(prompts, drafts, stop, max_new_tokens) if drafts else [[] for _ in prompts]
            open_ends = [
                index
                for index, answer in enumerate(answers)
                if not answer
                or (answer[-1] != stop and len(answer) < max_new_tokens and not hopeless(answer))
            ]
            done = len(prompts) - len(open_ends)
            progress(done)
            prefix = common_prefix([tuple(prompt) for prompt in prompts])
            lengths = [len(prompts[index]) + max_new_tokens for index in open_ends]
            for group in alike(lengths, BATCH_TOKENS):
                chosen = [open_ends[place] for place in group]
                own = [[*prompts[index][len(prefix) :], *answers[index]] for index in chosen]
                batch = [answers[index] for index in chosen]
                self._extend(batch, prefix, own, stop, max_new_tokens, hopeless)
                done += len(chosen)
                progress(done)
        return [answer[:-1] if answer[-1:] == [stop] else answer for answer in answers]

    def _agreed(
        self,
        prompts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        stop: int,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """The greedy answers, as far as the drafts agree and one token further."""
        conversations = [
            Conversation("", (*prompt, *draft[:max_new_tokens]), len(prompt))
            for prompt, draft in zip(prompts, drafts, strict=True)
        ]
        agreed: list[list[int]] = [[] for _ in prompts]
        for chosen in alike([conversation.positions for conversation in conversations], VERIFIED_TOKENS):
            for index, logits in zip(chosen, self.logits([conversations[i] for i in chosen]), strict=True):
                for likely, token in zip(drafts[index], logits.argmax(axis=1).tolist(), strict=False):
                    agreed[index].append(token)
                    if token == stop or token != likely:
                        break
        return agreed

    def _extend(
        self,
        answers: Sequence[list[int]],
        prefix: Sequence[int],
        begun: Sequence[Sequence[int]],
        stop: int,
        max_new_tokens: int,
        hopeless: Callable[[Sequence[int]], bool],
    ) -> None:
        """Append to answers, the stop token included, token by token.

        `prefix` is computed once; `begun` is of each answer what follows `prefix`: the rest of the prompt,
        and the answer so far.
        """
        past = self._begun(prefix, len(begun))
        width = max(map(len, begun))
        ids = torch.tensor([[stop] * (width - len(row)) + list(row) for row in begun])
        mask = torch.tensor([[1] * len(prefix) + [0] * (width - len(row)) + [1] * len(row) for row in begun])
        asked = list(range(len(begun)))  # whose answer each row of the batch is
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, len(prefix) :]
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        while True:
            chosen, past = out.logits[:, -1].argmax(dim=-1), out.past_key_values
            going: list[int] = []
            for row, index in enumerate(asked):
                answer = answers[index]
                answer.append(int(chosen[row]))
                if answer[-1] != stop and len(answer) < max_new_tokens and not hopeless(answer):
                    going.append(row)
            if not going:
                return
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
