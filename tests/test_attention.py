"""Attention in packed rows: the same as one conversation at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from pipeline.config import SEVEN_PROJECTIONS
from pipeline.data.packing import Row, pack
from pipeline.data.render import Example
from pipeline.training.attention import PACKED, completion_slots, join_row, split_row
from pipeline.training.batches import collate, summed_loss
from pipeline.training.lora import fused_lora

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


PREFIXES = ((1, 9), SHARED, tuple(range(3, 60)))
"""Of two, four and 57 tokens."""


def behind(prefix: tuple[int, ...]) -> list[Example]:
    """Nine conversations behind a prefix, of lengths that differ."""
    return [
        Example(
            (*prefix, *range(70 + number, 71 + 2 * number)),
            tuple(range(30 + number, 31 + number + number * 5 % 7)),
        )
        for number in range(1, 10)
    ]


@pytest.mark.parametrize("trained", ["everything", "lora"])
def test_rows_behind_several_prefixes_train_as_their_conversations_one_by_one(
    tiny_checkpoint: Path, trained: str
) -> None:
    """Loss and gradients of one optimizer step over rows that accumulate, to float32 rounding."""
    examples = {prefix: behind(prefix) for prefix in PREFIXES}
    rows = {prefix: pack(own, length=50, context=200, seed=0) for prefix, own in examples.items()}
    for prefix, own in rows.items():
        assert len(own) > 1
        assert all(row.segments.count(0) == len(prefix) for row in own)
        # Completions of different lengths in a row: the shorter are padded.
        assert any(
            completion_slots(row.segments)[0].numel() > len(completion_slots(row.segments)[1]) for row in own
        )

    plain = trainable(tiny_checkpoint, "eager", trained)
    alone = torch.zeros(())
    for example in (example for own in examples.values() for example in own):
        logits = plain(input_ids=torch.tensor([example.prompt + example.answer])).logits[0]
        answers = torch.tensor(example.answer)
        alone = alone + cross_entropy(logits[len(example.prompt) - 1 : -1], answers, reduction="sum")
    alone.backward()

    packed = trainable(tiny_checkpoint, PACKED, trained)
    together = torch.zeros(())
    with fused_lora(packed):
        for row in (row for own in rows.values() for row in own):
            batch = collate([row])
            labels = batch.pop("labels")
            loss = summed_loss(packed(**batch, use_cache=False).logits, labels)
            loss.backward()
            together = together + loss.detach()

    torch.testing.assert_close(together, alone.detach(), rtol=1e-6, atol=0)
    learning = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert len(learning) == (28 if trained == "lora" else 20)
    found, wanted = dict(packed.named_parameters()), dict(plain.named_parameters())
    for name in learning:
        one, other = found[name].grad, wanted[name].grad
        assert other is not None
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item(), msg=name)


def trainable(checkpoint: Path, attention: str, trained: str) -> torch.nn.Module:
    """The model whole, or with LoRA on its seven projections, B not zero so that A has a gradient."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=attention)
    if trained == "everything":
        return model
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(SEVEN_PROJECTIONS)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return adapted
