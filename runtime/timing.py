"""Where the time of an answer goes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer.
        ttft_ms: until the first new token was known, in milliseconds.
        total_ms: until the last one was, in milliseconds: the sum of the four shares below.
        prefix_tokens: of the prompt's tokens, those that every prompt begins with and that had to be
            computed again: none, but for a task's first answer and after other use of its decoder.
        decode_runs: runs of the model behind the prompt's; a run takes a chosen token and all it forces.
        prefill_ms: in the model, for the prompt and what is forced before a token is chosen.
        decode_ms: in the model, behind that.
        grammar_ms: what may come next, what must, and how it is spelt.
        python_ms: the rest: waiting for the task, template, tokenizer, choosing tokens, their text.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    total_ms: float
    prefix_tokens: int
    decode_runs: int
    prefill_ms: float
    decode_ms: float
    grammar_ms: float
    python_ms: float


class Span:
    """Adds up the time inside of it. Use as a context manager, again and again."""

    def __init__(self) -> None:
        self.ms = 0.0
        self.entered = 0
        self._since = 0.0

    def __enter__(self) -> None:
        self.entered += 1
        self._since = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.ms += (time.perf_counter() - self._since) * 1000


class Stopwatch:
    """The spans of one answer; it starts when it is made."""

    def __init__(self) -> None:
        self.prefill, self.decode, self.grammar = Span(), Span(), Span()
        self._started = time.perf_counter()
        self._first_ms: float | None = None

    def said(self) -> None:
        """A new token is known."""
        if self._first_ms is None:
            self._first_ms = self._elapsed_ms()

    def timing(self, prompt_tokens: int, new_tokens: int, prefix_tokens: int) -> Timing:
        """What was measured until now."""
        total = self._elapsed_ms()
        spans = self.prefill.ms + self.decode.ms + self.grammar.ms
        return Timing(
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            ttft_ms=total if self._first_ms is None else self._first_ms,
            total_ms=total,
            prefix_tokens=prefix_tokens,
            decode_runs=self.decode.entered,
            prefill_ms=self.prefill.ms,
            decode_ms=self.decode.ms,
            grammar_ms=self.grammar.ms,
            python_ms=total - spans,
        )

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000
