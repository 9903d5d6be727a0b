"""Attention in packed rows: the same as one conversation at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.data.packing import Row, pack
from pipeline.data.render import Example
from pipeline.training.attention import PACKED, completion_slots, join_row, split_row
from pipeline.training.batches import collate

SHARED = (1, 7, 7, 30)
CONVERSATIONS = {
    "several": [
        Example((*SHARED, 5, 6), (9, 8, 7, 2)),
        Example((*SHARED, 11), (3, 2)),
        Example((*SHARED, 4), (2,)),
    ],
    "alone": [Example((*SHARED, 5, 6), (9, 8, 7, 2))],
    "no prefix": [Example((5, 6), (9, 8, 7, 2)), Example((11, 12, 13), (3, 2))],
}


def one_by_one(model: torch.nn.Module, row: Row, examples: list[Example]) -> torch.Tensor:
    """Logits at the row's supervised positions, each conversation fed alone."""
    found, start = [], 0
    while start < len(row.targets):
        example = next(e for e in examples if row.targets[start : start + len(e.answer)] == e.answer)
        whole = model(input_ids=torch.tensor([example.prompt + example.answer])).logits[0]
        found.append(whole[len(example.prompt) - 1 : -1])
        start += len(example.answer)
    return torch.cat(found)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_packed_row_has_the_logits_and_gradients_of_its_conversations(
    tiny_checkpoint: Path, name: str
) -> None:
    examples = CONVERSATIONS[name]
    (row,) = pack(examples, length=100, context=100, seed=0)
    batch = collate([row])
    batch.pop("labels")
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation="eager")
    packed = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation=PACKED)
    logits = packed(**batch, use_cache=False).logits[0]
    wanted = one_by_one(plain, row, examples)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    (logits * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (name, parameter), other in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert other.grad is not None
        scale = other.grad.abs().max()
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5 * scale.item(), msg=name)


def test_slots_pad_each_completion_with_its_last_token() -> None:
    slots, real = completion_slots((0, 0, 1, 1, 1, 2))
    assert slots.tolist() == [[2, 3, 4], [5, 5, 5]]
    assert real.tolist() == [0, 1, 2, 3]


def test_splitting_and_joining_are_inverse_and_have_exact_gradients() -> None:
    slots, real = completion_slots((0, 0, 1, 1, 1, 2))
    row = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    first, padded = split_row(row, slots, real)
    torch.testing.assert_close(join_row(first, padded, slots, real), row)

    def through(row: torch.Tensor) -> torch.Tensor:
        first, padded = split_row(row, slots, real)
        # Padding that reached the result, or had a gradient, would show here.
        return join_row(first * 2, padded.cumsum(1), slots, real)

    assert torch.autograd.gradcheck(through, row)
