"""Parity figures against values computed another way, on models small enough to write down."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from pipeline.evidence.form import Conversation, Logits
from pipeline.evidence.parity import check_cache, positions, summarize
from runtime.report import Comparison

VOCABULARY = 11
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
CONVERSATIONS = [
    Conversation(f"c{index}", tuple(int(t) for t in RANDOM.integers(0, VOCABULARY, 9)), 3)
    for index in range(5)
]


def running_sum(tokens: Sequence[int]) -> Logits:
    """A model with memory: logits after each token are the sum of the rows of all tokens so far."""
    return np.cumsum(TABLE[list(tokens)], axis=0, dtype=np.float32)


def noisy(tokens: Sequence[int]) -> Logits:
    random = np.random.default_rng(sum(tokens))
    return running_sum(tokens) + random.normal(scale=0.3, size=(len(tokens), VOCABULARY)).astype(np.float32)


def compare(
    reference: Callable[[Sequence[int]], Logits],
    candidate: Callable[[Sequence[int]], Logits],
    near_tie: float,
) -> Comparison:
    parts = [
        positions(one, one.counted(reference(one.tokens)), one.counted(candidate(one.tokens)), near_tie)
        for one in CONVERSATIONS
    ]
    return summarize("bundle", "unmerged", parts, near_tie)


def test_a_model_equals_itself() -> None:
    same = compare(running_sum, running_sum, near_tie=1e-3)
    assert same.max_absolute_error.value == 0
    assert same.kl_max.value == pytest.approx(0, abs=1e-15)
    assert same.top1.value == 1
    assert same.top5.value == 1
    assert same.flips == same.near_tie_flips == 0
    assert same.perplexity_difference.value == 0
    assert same.positions == 5 * 6


def test_figures_agree_with_torch() -> None:
    found = compare(running_sum, noisy, near_tie=1e-9)
    reference = torch.tensor(
        np.concatenate([running_sum(c.tokens)[2:-1] for c in CONVERSATIONS]), dtype=torch.float64
    )
    other = torch.tensor(np.concatenate([noisy(c.tokens)[2:-1] for c in CONVERSATIONS]), dtype=torch.float64)
    following = torch.tensor([token for c in CONVERSATIONS for token in c.tokens[3:]])
    kl = torch.nn.functional.kl_div(
        other.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    assert found.kl_mean.value == pytest.approx(float(kl.mean()))
    assert found.kl_max.value == pytest.approx(float(kl.max()))
    assert found.kl_p99.value == pytest.approx(float(kl.quantile(0.99)))
    assert found.max_absolute_error.value == pytest.approx(float((other - reference).abs().max()))
    assert found.relative_error.value == pytest.approx(
        float((other - reference).abs().max() / reference.abs().max())
    )
    assert found.rms_absolute_error.value == pytest.approx(float((other - reference).square().mean().sqrt()))
    assert found.flips == int((other.argmax(1) != reference.argmax(1)).sum()) > 0
    perplexity = found.reference_perplexity + found.perplexity_difference.value
    assert perplexity == pytest.approx(float(torch.nn.functional.cross_entropy(other, following).exp()))
    assert sum(found.kl_histogram.counts) == found.positions
    overlap = [
        len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) / 5
        for a, b in zip(reference, other, strict=True)
    ]
    assert found.top5.value == pytest.approx(float(np.mean(overlap)))


def test_a_flip_on_a_near_tie_is_counted_apart() -> None:
    def tied(tokens: Sequence[int]) -> Logits:
        return np.tile(np.array([1.0, 1.0 - 5e-4, *([0.0] * 9)], np.float32), (len(tokens), 1))

    def other_way(tokens: Sequence[int]) -> Logits:
        return np.tile(np.array([1.0 - 5e-4, 1.0, *([0.0] * 9)], np.float32), (len(tokens), 1))

    apart = compare(tied, other_way, near_tie=1e-3)
    assert (apart.flips, apart.near_tie_flips, apart.top1.value) == (0, 30, 1.0)
    counted = compare(tied, other_way, near_tie=1e-4)
    assert (counted.flips, counted.near_tie_flips, counted.top1.value) == (30, 0, 0.0)


class RunningSum:
    """The running-sum model with a cache; `stale` forgets to drop what was rewound."""

    def __init__(self, stale: bool = False) -> None:
        self._tokens: list[int] = []
        self._stale = stale

    def feed(self, tokens: Sequence[int]) -> Logits:
        self._tokens += tokens
        return np.asarray(running_sum(self._tokens)[-1])

    def score(self, tokens: Sequence[int]) -> Logits:
        return running_sum(tokens)

    def rewind(self, length: int) -> None:
        del self._tokens[length + self._stale :]

    def reset(self) -> None:
        self._tokens.clear()


def test_a_right_cache_agrees_with_prefill_in_every_way() -> None:
    checks = check_cache("bundle", RunningSum(), CONVERSATIONS)
    assert [check.way for check in checks] == ["decode", "chunks", "rewind"]
    assert all(check.relative_error == 0 and check.flips == 0 for check in checks)
    assert [check.positions for check in checks] == [45, 10, 25]


def test_a_cache_that_rewinds_one_too_few_is_seen() -> None:
    decode, chunks, rewind = check_cache("bundle", RunningSum(stale=True), CONVERSATIONS)
    assert decode.relative_error == chunks.relative_error == 0
    assert rewind.relative_error > 0.05
