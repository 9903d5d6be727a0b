"""The unmerged model: base plus adapter in PEFT, eager float32. Everything is measured against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.quiet import quiet_transformers
from runtime.errors import CheckpointError

BATCH = 32
"""Prompts answered together: the answers do not depend on it beyond float rounding."""


class Unmerged:
    """Base and adapter as trained, never merged; the bare base is the same model, adapter disabled."""

    def __init__(self, base: Path, adapter: Path, threads: int) -> None:
        """Load both in float32.

        Raises:
            CheckpointError: either cannot be loaded.
        """
        torch.set_num_threads(threads)
        try:
            with quiet_transformers():
                self._model = _load(base, adapter)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load {base} with the adapter {adapter}: {error}") from error

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (n, vocabulary) of one conversation of n tokens."""
        out = self._model(input_ids=torch.tensor([tokens]), use_cache=False)
        return np.asarray(out.logits[0].float().numpy())

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
        with quiet_transformers(), nullcontext() if adapter else self._model.disable_adapter():
            for at in range(0, len(order), BATCH):
                chosen = order[at : at + BATCH]
                batch = self._batch([prompts[index] for index in chosen], stop, max_new_tokens, hopeless)
                for index, answer in zip(chosen, batch, strict=True):
                    found[index] = answer
                progress(min(at + BATCH, len(order)))
        return found

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        stop: int,
        max_new_tokens: int,
        hopeless: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[stop] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        answers: list[list[int]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        for _ in range(max_new_tokens):
            chosen = out.logits[:, -1].argmax(dim=-1)
            for row in list(open_rows):
                token = int(chosen[row])
                if token != stop:
                    answers[row].append(token)
                if token == stop or hopeless(answers[row]):
                    open_rows.remove(row)
            if not open_rows:
                break
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], dim=1)
            out = self._model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
        return answers


def _load(base: Path, adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, local_files_only=True
    )
    return PeftModel.from_pretrained(model, adapter).train(False)
