"""The loop from a prompt to the tokens of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from runtime.constraint import ConstrainedAnswer
from runtime.errors import UsageError
from runtime.lane import Lane
from runtime.sampling import Sampling, choose, choose_among
from runtime.stopping import Stopping
from runtime.timing import Stopwatch


def new_tokens(
    lane: Lane,
    pieces: Sequence[Sequence[int]],
    room: int,
    sampling: Sampling,
    grammar: ConstrainedAnswer | None,
    stop_tokens: AbstractSet[int],
    stopping: Stopping,
    watch: Stopwatch,
) -> Iterator[list[int]]:
    """New tokens in steps: a chosen one and those it forces. A last stop token is among them.

    The model runs where a token has to be chosen and nowhere else: what is forced is fed with what was
    chosen before it, or with the prompt, and behind the last choice nothing is fed.

    Args:
        lane: for this answer alone until it ends.
        pieces: of the prompt (`runtime.lane`).
        room: most new tokens, at least one.
        sampling: how a token is chosen.
        grammar: what may be said; None: anything.
        stop_tokens: end the answer.
        stopping: ends it before that.
        watch: told where the time goes.

    Raises:
        DeadlineError: as `stopping`.
        CancelledError: as `stopping`.
        UsageError: the lane's decoder was used by others in between.
        InferenceError: the model's numbers are not finite.
    """
    random = np.random.default_rng(sampling.seed)
    decoder = lane.decoder
    forced: list[int] = []
    if grammar:
        with watch.grammar:
            forced = grammar.forced()[:room]
    used = len(forced)
    if forced and forced[-1] in stop_tokens:
        yield forced  # there is one answer, whatever was said
        return
    stopping.check()
    with watch.prefill:
        logits = lane.begin([*pieces[:-1], [*pieces[-1], *forced]])
    mark = decoder.mark()
    if used == room:
        yield forced
    while used < room:
        if grammar:
            with watch.grammar:
                allowed = grammar.allowed()
            token = choose_among(allowed, logits, sampling, random)
            with watch.grammar:
                step = grammar.take(token)[: room - used]
        else:
            token = choose(logits, sampling, random)
            step = [token]
        expected = decoder.length
        yield forced + step
        forced = []
        used += len(step)
        if step[-1] in stop_tokens or used == room:
            return  # nothing is chosen behind it
        stopping.check()
        if decoder.length != expected or not decoder.holds(mark):
            raise UsageError(
                "the decoder was used by others before this answer ended; leave it alone until then"
            )
        with watch.decode:
            logits = decoder.feed(step)
