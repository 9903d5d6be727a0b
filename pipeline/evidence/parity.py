"""Logits of one form of the model against another, position by position.

Everything is computed in float64 from float32 logits, one conversation at a time, so that memory
holds the logits of two forms of one conversation and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evidence.form import Conversation, Logits
from pipeline.evidence.statistics import Floats, Samples, estimate, largest, pooled_quantile, ratio_of_sums
from runtime.report import CacheCheck, Comparison, Estimate, Histogram

KL_EDGES = (0.0, *(10.0**exponent for exponent in range(-9, 3)))
"""Decades of KL, in nats; the first bin holds what is below 1e-9."""

ROWS = 4
"""Positions whose probabilities are in memory at once: few enough that a processor's cache holds them."""

CHUNK = 7
"""Tokens of one chunk in the chunked check: odd, so that chunk borders fall everywhere."""


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
class Positions:
    """Figures of one conversation, each array over its positions."""

    max_absolute: float
    squares: float
    reference_max: float
    reference_squares: float
    kl: Floats
    flipped: NDArray[np.bool_]
    near_tie: NDArray[np.bool_]
    top5: Floats
    reference_nll: Floats
    nll: Floats
    logits: int


def positions(conversation: Conversation, reference: Logits, found: Logits, near_tie: float) -> Positions:
    """Measure one form's logits (positions, V) against another's.

    Args:
        conversation: whose tokens follow the positions.
        reference: of the form to be true to.
        found: of the form measured.
        near_tie: margin in logits below which the reference's choice counts as tied.
    """
    following = np.asarray(conversation.tokens[conversation.start :])
    parts = [
        _few(following[at : at + ROWS], reference[at : at + ROWS], found[at : at + ROWS], near_tie)
        for at in range(0, len(following), ROWS)
    ]
    return Positions(
        max_absolute=max(part.max_absolute for part in parts),
        squares=sum(part.squares for part in parts),
        reference_max=max(part.reference_max for part in parts),
        reference_squares=sum(part.reference_squares for part in parts),
        kl=np.concatenate([part.kl for part in parts]),
        flipped=np.concatenate([part.flipped for part in parts]),
        near_tie=np.concatenate([part.near_tie for part in parts]),
        top5=np.concatenate([part.top5 for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        nll=np.concatenate([part.nll for part in parts]),
        logits=found.size,
    )


def _few(following: NDArray[np.int64], reference: Logits, found: Logits, near_tie: float) -> Positions:
    wanted, difference = reference.astype(np.float64), found.astype(np.float64)
    wanted_sum, probability = _log_sum_exp(wanted)
    found_sum, _ = _log_sum_exp(difference)
    nll = (found_sum - np.take_along_axis(difference, following[:, None], axis=1))[:, 0]
    difference -= wanted
    order, found_order = _top5(reference), _top5(found)
    best = np.take_along_axis(wanted, order, axis=1)
    reference_nll = (wanted_sum - np.take_along_axis(wanted, following[:, None], axis=1))[:, 0]
    squares = float(np.einsum("pv,pv->", difference, difference))
    reference_squares = float(np.einsum("pv,pv->", wanted, wanted))
    # Σ p (log p - log q), with log p - log q = log Σ exp q - log Σ exp p - (found - reference).
    kl = (found_sum - wanted_sum)[:, 0] - np.einsum("pv,pv->p", probability, difference)
    return Positions(
        max_absolute=float(np.abs(difference, out=difference).max()),
        squares=squares,
        reference_max=float(np.abs(reference).max()),
        reference_squares=reference_squares,
        # KL is never negative; rounding of a sum over the vocabulary can leave -1e-15.
        kl=np.maximum(kl, 0.0),
        flipped=reference.argmax(axis=1) != found.argmax(axis=1),
        near_tie=best[:, 0] - best[:, 1] < near_tie,
        top5=(order[:, :, None] == found_order[:, None, :]).any(axis=2).mean(axis=1),
        reference_nll=reference_nll,
        nll=nll,
        logits=found.size,
    )


def _top5(logits: Logits) -> NDArray[np.int64]:
    """The five most probable tokens (positions, 5), most probable first."""
    # A copy: logits are mapped from a file, which torch takes for memory that it may write to.
    return np.asarray(torch.topk(torch.tensor(logits), 5, dim=1).indices.numpy())


def _log_sum_exp(logits: Floats) -> tuple[Floats, Floats]:
    """log Σ exp over the vocabulary (positions, 1), and the probabilities (positions, V)."""
    top = logits.max(axis=1, keepdims=True)
    exponentials = np.subtract(logits, top)
    np.exp(exponentials, out=exponentials)
    total = exponentials.sum(axis=1, keepdims=True)
    exponentials /= total
    return top + np.log(total), exponentials


def summarize(name: str, against: str, parts: Sequence[Positions], near_tie: float) -> Comparison:
    """The figures of all conversations, with intervals over them.

    Args:
        name: the form measured.
        against: the form it was measured against.
        parts: of each conversation; at least one.
        near_tie: see `positions`.
    """
    counts = [len(part.kl) for part in parts]
    kl = np.concatenate([part.kl for part in parts])
    flips = [int((part.flipped & ~part.near_tie).sum()) for part in parts]
    bins, _ = np.histogram(np.minimum(kl, KL_EDGES[-1]), bins=np.asarray(KL_EDGES))
    reference_nll = np.concatenate([part.reference_nll for part in parts])
    squares = [part.squares for part in parts]
    return Comparison(
        name=name,
        against=against,
        conversations=len(parts),
        positions=len(kl),
        max_absolute_error=largest([part.max_absolute for part in parts]),
        rms_absolute_error=_root(squares, [part.logits for part in parts]),
        relative_error=_relative(parts),
        rms_relative_error=_root(squares, [part.reference_squares for part in parts]),
        kl_mean=ratio_of_sums([float(part.kl.sum()) for part in parts], counts),
        kl_p99=pooled_quantile([part.kl for part in parts], 0.99),
        kl_max=largest([float(part.kl.max()) for part in parts]),
        kl_histogram=Histogram(KL_EDGES, tuple(int(count) for count in bins)),
        top1=ratio_of_sums([count - flip for count, flip in zip(counts, flips, strict=True)], counts),
        top5=ratio_of_sums([float(part.top5.sum()) for part in parts], counts),
        flips=sum(flips),
        near_tie_flips=sum(int((part.flipped & part.near_tie).sum()) for part in parts),
        near_tie=near_tie,
        reference_perplexity=float(np.exp(reference_nll.mean())),
        perplexity_difference=_perplexity_difference(parts),
    )


def _root(squares: Sequence[float], of: Sequence[float]) -> Estimate:
    """Square root of a ratio of sums."""
    top, bottom = np.asarray(squares), np.asarray(of, np.float64)
    return estimate(len(top), lambda chosen: np.sqrt(top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1)))


def _relative(parts: Sequence[Positions]) -> Estimate:
    error = np.asarray([part.max_absolute for part in parts])
    scale = np.asarray([part.reference_max for part in parts])
    return estimate(len(parts), lambda chosen: error[chosen].max(axis=1) / scale[chosen].max(axis=1))


def _perplexity_difference(parts: Sequence[Positions]) -> Estimate:
    counts = np.asarray([len(part.kl) for part in parts])
    reference = np.asarray([part.reference_nll.sum() for part in parts])
    found = np.asarray([part.nll.sum() for part in parts])

    def difference(chosen: Samples) -> Floats:
        tokens = counts[chosen].sum(axis=1)
        return np.asarray(
            np.exp(found[chosen].sum(axis=1) / tokens) - np.exp(reference[chosen].sum(axis=1) / tokens)
        )

    return estimate(len(parts), difference)


def check_cache(
    form: Literal["weights_only", "bundle"], decoder: Cached, conversations: Sequence[Conversation]
) -> tuple[CacheCheck, ...]:
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
        _cache_check(form, "decode", found["decode"]),
        _cache_check(form, "chunks", found["chunks"]),
        _cache_check(form, "rewind", found["rewind"]),
    )


def _cache_check(
    form: Literal["weights_only", "bundle"],
    way: Literal["decode", "chunks", "rewind"],
    pairs: Sequence[tuple[Logits, Logits]],
) -> CacheCheck:
    worst = max(float(np.abs(cached - prefill).max()) for prefill, cached in pairs)
    scale = max(float(np.abs(prefill).max()) for prefill, _ in pairs)
    return CacheCheck(
        form=form,
        way=way,
        conversations=len(pairs),
        positions=sum(len(prefill) for prefill, _ in pairs),
        relative_error=worst / scale,
        flips=sum(int((prefill.argmax(axis=1) != cached.argmax(axis=1)).sum()) for prefill, cached in pairs),
    )
