"""One way of training in a process of its own, so that its memory is its own.

`python -m pipeline.claims.learner WAY` loads the base of a `Way` (JSON), replies, then reads a packed row,
makes one step on it and replies, a JSON line each.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass

import torch

from pipeline.claims.trainee import Kept, Trainee, Way, trainee
from pipeline.data.packing import Row
from runtime.bench import peak_bytes
from runtime.errors import CockpitError
from runtime.report import from_json

RATE = 1e-4
"""What a step costs does not depend on it."""


@dataclass(frozen=True)
class Stepped:
    """What one step took; nothing yet where none was made."""

    milliseconds: float
    peak_bytes: int
    """Of the process, or of the GPU where it is used, until now."""
    kept: Kept | None


def main(way: str) -> None:
    """Serve steps until standard input ends."""
    replies = sys.stdout

    def reply(stepped: Stepped) -> None:
        replies.write(json.dumps(asdict(stepped)) + "\n")
        replies.flush()

    # What a library prints must not come between the replies.
    with redirect_stdout(sys.stderr):
        try:
            with trainee(from_json(Way, way)) as model:
                reply(Stepped(0.0, _peak(), None))
                for line in sys.stdin:
                    reply(_step(model, from_json(Row, line)))
        except CockpitError as error:
            sys.exit(" ".join(str(error).split()))


def _step(model: Trainee, row: Row) -> Stepped:
    started = time.perf_counter()
    model.step(row, RATE)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Stepped((time.perf_counter() - started) * 1000, _peak(), model.kept())


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
