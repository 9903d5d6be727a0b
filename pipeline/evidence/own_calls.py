"""Calls that a bundle answers by itself: which, and where their time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from pipeline.data.records import Record
from pipeline.evidence.contender import Reply
from runtime.report import OwnCalls, distribution
from runtime.timing import Timing


def in_each_language(records: Sequence[Record], most: int) -> dict[str, list[str]]:
    """The first `most` utterances in every language of the records: language → utterances."""
    return {
        language: [record.utterance for record in records if record.lang == language][:most]
        for language in sorted({record.lang for record in records})
    }


def own_calls(replies: Sequence[Reply]) -> OwnCalls:
    """Times of calls, and the means of their parts.

    Args:
        replies: of a bundle to calls; at least one.
    """
    times = [reply.times_ms[0] for reply in replies]
    timings = list(_timings(replies))
    prefill, decode, grammar = (
        fmean(getattr(timing, part) for timing in timings)
        for part in ("prefill_ms", "decode_ms", "grammar_ms")
    )
    return OwnCalls(
        times=distribution(times),
        runs=fmean(timing.decode_runs for timing in timings),
        new_tokens=fmean(timing.new_tokens for timing in timings),
        prefill_ms=prefill,
        decode_ms=decode,
        grammar_ms=grammar,
        python_ms=fmean(times) - prefill - decode - grammar,
    )


def _timings(replies: Sequence[Reply]) -> Iterator[Timing]:
    for reply in replies:
        assert reply.timing is not None
        yield reply.timing
