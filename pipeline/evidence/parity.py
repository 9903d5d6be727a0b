"""Logits of one form of the model against another, position by position.

Everything is computed in float64 from float32 logits, one conversation at a time, so that memory
holds the logits of two forms of one conversation and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.evidence.statistics import ratio_of_sums
from runtime.report import CacheCheck, Comparison, Estimate, Histogram

Logits = NDArray[np.float32]
Scorer = Callable[[Sequence[int]], Logits]
"""Token ids (n,) → logits (n, vocabulary)."""

KL_EDGES = (0.0, *(10.0**exponent for exponent in range(-9, 3)))
"""Decades of KL, in nats; the first bin holds what is below 1e-9."""

CHUNK = 7
"""Tokens of one chunk in the chunked check: odd, so that chunk borders fall everywhere."""


@dataclass(frozen=True)
class Conversation:
    """Token ids of a prompt and its answer; positions before `start` are shared and not counted."""

    id: str
    tokens: tuple[int, ...]
    start: int


class Cached(Protocol):
    """A decoder with a cache: what `runtime.decoder.Decoder` offers."""

    def feed(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; logits (vocabulary,) after the last."""

    def score(self, tokens: Sequence[int]) -> Logits:
        """Logits (n, vocabulary) of a fresh conversation."""

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""

    def reset(self) -> None:
        """Keep none."""


@dataclass(frozen=True)
class _Positions:
    """Figures of one conversation, each an array over its positions."""

    max_absolute: NDArray[np.float64]
    squares: NDArray[np.float64]
    reference_max: float
    reference_squares: NDArray[np.float64]
    kl: NDArray[np.float64]
    flipped: NDArray[np.bool_]
    near_tie: NDArray[np.bool_]
    top5: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    nll: NDArray[np.float64]
    logits: int


def compare(
    name: str,
    against: str,
    conversations: Sequence[Conversation],
    reference: Scorer,
    candidate: Scorer,
    near_tie: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Measure `candidate` against `reference` on every counted position.

    Args:
        name: the candidate's name.
        against: the reference's name.
        conversations: at least one.
        reference: the model to be true to.
        candidate: the model measured.
        near_tie: margin in logits below which the reference's choice counts as tied.
        progress: told the number of conversations done.
    """
    parts: list[_Positions] = []
    for done, conversation in enumerate(conversations, 1):
        expected, found = reference(conversation.tokens), candidate(conversation.tokens)
        parts.append(_positions(conversation, expected, found, near_tie))
        progress(done)
    return _summary(name, against, parts, near_tie)


def _positions(conversation: Conversation, reference: Logits, found: Logits, near_tie: float) -> _Positions:
    # Position p predicts token p + 1, so the last position predicts nothing that is known.
    counted = slice(conversation.start - 1, len(conversation.tokens) - 1)
    wanted, got = reference[counted].astype(np.float64), found[counted].astype(np.float64)
    following = np.asarray(conversation.tokens[conversation.start :])[:, None]
    difference = np.abs(got - wanted)
    wanted_log, got_log = _log_softmax(wanted), _log_softmax(got)
    order = np.argpartition(wanted, -5, axis=1)[:, -5:]
    best = np.sort(np.take_along_axis(wanted, order, axis=1), axis=1)
    got_order = np.argpartition(got, -5, axis=1)[:, -5:]
    return _Positions(
        max_absolute=difference.max(axis=1),
        squares=np.square(difference).sum(axis=1),
        reference_max=float(np.abs(wanted).max()),
        reference_squares=np.square(wanted).sum(axis=1),
        # KL is never negative; rounding of a sum over the vocabulary can leave -1e-17.
        kl=np.maximum((np.exp(wanted_log) * (wanted_log - got_log)).sum(axis=1), 0.0),
        flipped=wanted.argmax(axis=1) != got.argmax(axis=1),
        near_tie=best[:, -1] - best[:, -2] < near_tie,
        top5=(order[:, :, None] == got_order[:, None, :]).any(axis=2).mean(axis=1),
        reference_nll=-np.take_along_axis(wanted_log, following, axis=1)[:, 0],
        nll=-np.take_along_axis(got_log, following, axis=1)[:, 0],
        logits=wanted.size,
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _summary(name: str, against: str, parts: Sequence[_Positions], near_tie: float) -> Comparison:
    counts = [len(part.kl) for part in parts]
    kl = np.concatenate([part.kl for part in parts])
    flips = [int((part.flipped & ~part.near_tie).sum()) for part in parts]
    squares = sum(float(part.squares.sum()) for part in parts)
    reference_squares = sum(float(part.reference_squares.sum()) for part in parts)
    max_absolute = max(float(part.max_absolute.max()) for part in parts)
    same = ratio_of_sums([count - flip for count, flip in zip(counts, flips, strict=True)], counts)
    bins, _ = np.histogram(np.minimum(kl, KL_EDGES[-1]), bins=np.asarray(KL_EDGES))
    return Comparison(
        name=name,
        against=against,
        conversations=len(parts),
        positions=len(kl),
        max_absolute_error=max_absolute,
        rms_absolute_error=float(np.sqrt(squares / sum(part.logits for part in parts))),
        relative_error=max_absolute / max(part.reference_max for part in parts),
        rms_relative_error=float(np.sqrt(squares / reference_squares)),
        kl_mean=ratio_of_sums([float(part.kl.sum()) for part in parts], counts),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        kl_histogram=Histogram(KL_EDGES, tuple(int(count) for count in bins)),
        top1=Estimate(same.value, same.low, same.high),
        top5=float(np.concatenate([part.top5 for part in parts]).mean()),
        flips=sum(flips),
        near_tie_flips=sum(int((part.flipped & part.near_tie).sum()) for part in parts),
        near_tie=near_tie,
        reference_perplexity=_perplexity([part.reference_nll for part in parts]),
        perplexity=_perplexity([part.nll for part in parts]),
    )


def _perplexity(parts: Sequence[NDArray[np.float64]]) -> float:
    return float(np.exp(np.concatenate(parts).mean()))


def check_cache(decoder: Cached, conversations: Sequence[Conversation]) -> tuple[CacheCheck, ...]:
    """Run conversations through the cache in three other ways; all must agree with one prefill.

    decode: one token at a time. chunks: `CHUNK` tokens at a time. rewind: everything, then back to
    the middle, then the second half again token by token, which a stale cache entry would spoil.
    """
    found: dict[str, list[tuple[Logits, Logits]]] = {"decode": [], "chunks": [], "rewind": []}
    for conversation in conversations:
        tokens, middle = conversation.tokens, len(conversation.tokens) // 2
        prefill = decoder.score(tokens)
        decoder.reset()
        found["decode"].append((prefill, np.stack([decoder.feed([token]) for token in tokens])))
        decoder.reset()
        pieces = [tokens[at : at + CHUNK] for at in range(0, len(tokens), CHUNK)]
        ends = np.cumsum([len(piece) for piece in pieces]) - 1
        found["chunks"].append((prefill[ends], np.stack([decoder.feed(piece) for piece in pieces])))
        decoder.reset()
        decoder.feed(tokens[::-1])
        decoder.rewind(0)
        decoder.feed(tokens)
        decoder.rewind(middle)
        refilled = np.stack([decoder.feed([token]) for token in tokens[middle:]])
        found["rewind"].append((prefill[middle:], refilled))
        decoder.reset()
    return (
        _cache_check("decode", found["decode"]),
        _cache_check("chunks", found["chunks"]),
        _cache_check("rewind", found["rewind"]),
    )


def _cache_check(
    way: Literal["decode", "chunks", "rewind"], pairs: Sequence[tuple[Logits, Logits]]
) -> CacheCheck:
    worst = max(float(np.abs(cached - prefill).max()) for prefill, cached in pairs)
    scale = max(float(np.abs(prefill).max()) for prefill, _ in pairs)
    return CacheCheck(
        way=way,
        conversations=len(pairs),
        positions=sum(len(prefill) for prefill, _ in pairs),
        relative_error=worst / scale,
        flips=sum(int((prefill.argmax(axis=1) != cached.argmax(axis=1)).sum()) for prefill, cached in pairs),
    )
