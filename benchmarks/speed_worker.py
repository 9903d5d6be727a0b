"""What a peer's process does around its model: measurements asked for and told in JSON lines.

Standard library only, since it runs in the peer's own environment. A line `{"decode": …}` or `{"call": …}`
is answered by one line; the first line says that the model is loaded.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

CONTEXT = 2048
"""Tokens of prompt and answer that a peer is given room for in a call, as a bundle has by default."""


@dataclass(frozen=True)
class Decoded:
    """Milliseconds of a prompt, first new token included, and of all further new tokens."""

    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Said:
    """An answer, and how many tokens its prompt and itself have."""

    text: str
    prompt_tokens: int
    new_tokens: int


class Model(Protocol):
    """What is timed."""

    def decode(self, prompt: list[int], new: int) -> Decoded:
        """Feed a prompt and go on for so many tokens behind its first, whatever they are."""

    def answer(self, prompt: str, most_new: int) -> Said:
        """Answer a prompt greedily under the schema, up to the token that ends the turn."""


def serve(load: Callable[[], Model]) -> None:
    """Load a model and answer until standard input ends."""
    replies = sys.stdout
    source = random.Random(0)

    def reply(**figures: object) -> None:
        replies.write(json.dumps(figures | {"peak_bytes": peak_bytes("self")}) + "\n")
        replies.flush()

    with redirect_stdout(sys.stderr):  # what a library prints must not come between the replies
        started = time.perf_counter()
        model = load()
        reply(load_ms=_since(started))
        for line in sys.stdin:
            asked = json.loads(line)
            if "decode" in asked:
                # Fresh tokens each time, so that no cache of prompts helps; ids that every byte-level
                # vocabulary has and none uses for control.
                prompt = [source.randrange(100, 250) for _ in range(asked["decode"]["prompt_tokens"])]
                reply(**asdict(model.decode(prompt, asked["decode"]["new_tokens"])))
            else:
                started = time.perf_counter()
                said = model.answer(asked["call"]["prompt"], asked["call"]["most_new"])
                reply(call_ms=_since(started), **asdict(said))


def call_schema(tools: Path) -> dict[str, object]:
    """JSON Schema of a list of calls of the functions in a tools.json."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in json.loads(tools.read_text(encoding="utf-8"))
    ]
    return {"type": "array", "items": {"anyOf": calls}}


def peak_bytes(process: str) -> int:
    """The largest resident set of a process so far; the kernel's own mark, so Linux only."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
