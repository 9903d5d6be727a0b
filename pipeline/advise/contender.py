"""The tasks of one form in a process of their own, so that memory and load time are their own.

`python -m pipeline.advise.contender FORM THREADS BUNDLE TASK…` gets every task ready, says what that took
(`Ready`), then reads a `Question` and writes `Times` in turn, a JSON line each. FORM is `merged`, which
opens the bundle once for every task, or `switchable`. Nothing of ours but the runtime is imported.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import runtime
from runtime.assistant import Assistant
from runtime.bench import peak_bytes
from runtime.errors import CockpitError
from runtime.report import from_json

UTTERANCE = "set the driver side to 22 degrees"
"""Answered to its first token; which it is changes nothing but the length of the prompt."""


@dataclass(frozen=True)
class Ready:
    """All tasks can answer, and each has answered once.

    Attributes:
        ready_ms: from the first file opened until then.
        resident_bytes: of the process then.
        peak_bytes: of the process until then.
    """

    ready_ms: float
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Question:
    """What to time: a prompt and new tokens behind it, a first token, and one behind a switch.

    Attributes:
        task: is timed; None is the bare base of a switchable bundle.
        other: is in use before the switch.
    """

    task: str | None
    other: str | None
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Times:
    """In milliseconds.

    Attributes:
        prefill: of the prompt.
        token: of a new token behind it, median.
        first: from an utterance to its answer's first token, the task being in use.
        switch: of making the task the one in use.
        first_after: as `first`, right behind that switch.
    """

    prefill: float
    token: float
    first: float
    switch: float
    first_after: float


class Tasks(Protocol):
    """One form."""

    def use(self, task: str | None) -> Assistant:
        """The assistant that answers for a task from now on."""


class Merged:
    """A bundle for each task."""

    def __init__(self, bundle: Path, threads: int, tasks: Sequence[str]) -> None:
        self._assistants = {task: runtime.load(bundle, threads=threads) for task in tasks}

    def use(self, task: str | None) -> Assistant:
        """The assistant of its bundle."""
        assert task is not None
        return self._assistants[task]


class Switchable:
    """One bundle of all tasks."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self._assistant = runtime.load(bundle, threads=threads)

    def use(self, task: str | None) -> Assistant:
        """The one assistant, switched."""
        self._assistant.use(task)
        return self._assistant


def main(arguments: Sequence[str]) -> None:
    """Serve measurements until standard input ends."""
    replies = sys.stdout

    def reply(said: Ready | Times) -> None:
        replies.write(json.dumps(asdict(said)) + "\n")
        replies.flush()

    # What a library prints must not come between the replies.
    with redirect_stdout(sys.stderr):
        try:
            form, threads, bundle, *names = arguments
            started = time.perf_counter()
            tasks: Tasks = (
                Merged(Path(bundle), int(threads), names)
                if form == "merged"
                else Switchable(Path(bundle), int(threads))
            )
            for name in names:
                tasks.use(name).answer(UTTERANCE, 1)
            reply(Ready(_since(started), resident_bytes(), peak_bytes()))
            for line in sys.stdin:
                reply(measure(tasks, from_json(Question, line)))
        except CockpitError as error:
            sys.exit(" ".join(str(error).split()))


def measure(tasks: Tasks, question: Question) -> Times:
    """Answer a question."""
    prefill, token = _decode(tasks.use(question.task), question)
    tasks.use(question.task).answer(UTTERANCE, 1)  # computes the common prefix again, which decoding replaced
    first = tasks.use(question.task).answer(UTTERANCE, 1).timing.ttft_ms
    tasks.use(question.other).answer(UTTERANCE, 1)
    started = time.perf_counter()
    assistant = tasks.use(question.task)
    switch = _since(started)
    return Times(prefill, token, first, switch, assistant.answer(UTTERANCE, 1).timing.ttft_ms)


def _decode(assistant: Assistant, question: Question) -> tuple[float, float]:
    decoder = assistant.decoder
    # Ids that every byte-level vocabulary has and none uses for control; which they are changes no time.
    tokens = np.random.default_rng(0).integers(100, 250, question.prompt_tokens).tolist()
    decoder.reset()
    times = []
    for _ in range(1 + question.new_tokens):
        started = time.perf_counter()
        token = int(decoder.feed(tokens).argmax())
        times.append(_since(started))
        tokens = [token]
    return times[0], statistics.median(times[1:])


def resident_bytes() -> int:
    """The resident set of this process, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main(sys.argv[1:])
