"""Rows of completions behind one copy of the prefix that all prompts share.

Attention is causal, so what a token sees does not depend on what comes after the prefix elsewhere in
the row: with a mask that lets each completion see the prefix and itself, and positions that restart
after the prefix, loss and gradients are those of the examples one by one, and the prefix is paid for once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.data.render import Example
from runtime.errors import DataError


@dataclass(frozen=True)
class Row:
    """One packed sequence of T tokens.

    Attributes:
        input_ids: (T,) token ids.
        positions: (T,) position ids; each completion goes on from the prefix's last.
        segments: (T,) 0 for the prefix, k for the k-th completion.
        predictors: (S,) indices into the row whose logits are trained, ascending.
        targets: (S,) the token id that each predictor should give.
    """

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    predictors: tuple[int, ...]
    targets: tuple[int, ...]


def pack(examples: Sequence[Example], *, length: int, context: int, seed: int) -> list[Row]:
    """Pack examples into rows, first fit, in an order drawn with `seed`.

    Args:
        examples: what to train on; none is cut.
        length: tokens of a row behind its prefix, so that a longer prompt takes no sentence out of a step; an
            example that is longer has a row of its own.
        context: longest example, in tokens, that the model takes.
        seed: the same seed gives the same rows.

    Raises:
        DataError: an example has no prompt or no answer, or is longer than `context`.
    """
    for index, example in enumerate(examples):
        if not example.prompt or not example.answer:
            raise DataError(f"example {index} has an empty {'answer' if example.prompt else 'prompt'}")
        if (tokens := len(example.prompt) + len(example.answer)) > context:
            raise DataError(
                f"example {index} has {tokens} tokens and the model takes {context}; "
                "shorten it or leave it out"
            )
    prefix = common_prefix([example.prompt for example in examples])
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    bins: list[tuple[int, list[Example]]] = []
    for index in order:
        example = examples[index]
        size = len(example.prompt) - len(prefix) + len(example.answer)
        for place, (used, packed) in enumerate(bins):
            if used + size <= length:
                packed.append(example)
                bins[place] = (used + size, packed)
                break
        else:
            bins.append((size, [example]))
    return [_row(prefix, packed) for _, packed in bins]


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning of all prompts that leaves each at least one token of its own.

    That one token predicts the answer's first, so it must be the completion's.
    """
    if not prompts:
        return ()
    shortest, low, high = min(map(len, prompts)), min(prompts), max(prompts)
    shared = 0
    while shared < shortest - 1 and low[shared] == high[shared]:
        shared += 1
    return low[:shared]


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who may look at whom: (B, T) segments → (B, T, T) bool, query by key.

    A token sees itself and what is before it in the prefix and in its own completion.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    length = segments.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return causal & ((key == 0) | (key == query))


def _row(prefix: tuple[int, ...], examples: Sequence[Example]) -> Row:
    input_ids, positions, segments = list(prefix), list(range(len(prefix))), [0] * len(prefix)
    predictors: list[int] = []
    targets: list[int] = []
    for segment, example in enumerate(examples, start=1):
        # The last answer token is only ever a target.
        own = (*example.prompt[len(prefix) :], *example.answer[:-1])
        first = len(input_ids) + len(example.prompt) - len(prefix) - 1
        predictors += range(first, first + len(example.answer))
        targets += example.answer
        input_ids += own
        positions += range(len(prefix), len(prefix) + len(own))
        segments += [segment] * len(own)
    return Row(tuple(input_ids), tuple(positions), tuple(segments), tuple(predictors), tuple(targets))
