"""One contender in a process of its own, so that its memory and its load time are its own.

`python -m pipeline.evidence.contender KIND THREADS PATH [ADAPTER | TASK]` loads a model, replies with the
time that took, then reads a `Request` and writes a `Reply` in turn, a JSON line each. KIND is `bundle` (which
imports the runtime and nothing else of ours, and may have tasks), `unmerged` or `merged` (torch).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.bench import peak_bytes
from runtime.calls import check_call, parse_calls
from runtime.errors import CockpitError, DataError
from runtime.report import from_json
from runtime.timing import Timing


@dataclass(frozen=True)
class Decode:
    """Time a prompt of so many tokens, then each of the new tokens."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Call:
    """Time a whole answer: a bundle is given the utterance, torch the prompt it is rendered to."""

    utterance: str
    tokens: tuple[int, ...]
    stop: int
    """The token that ends torch's answer."""
    max_new_tokens: int


@dataclass(frozen=True)
class Request:
    """One of the two."""

    decode: Decode | None
    call: Call | None


@dataclass(frozen=True)
class Reply:
    """What it took, in milliseconds: one time, or for `Decode` one more than new tokens."""

    times_ms: tuple[float, ...]
    peak_bytes: int
    """Of the process until now."""
    timing: Timing | None
    """Of a bundle's answer to a `Call`, which `times_ms` has with the check of its calls."""


@dataclass(frozen=True)
class Said:
    """An answer that was only computed to be timed, and where its time went as far as the model knows."""

    tokens: Sequence[int]
    timing: Timing | None


class Model(Protocol):
    """What is timed."""

    def reset(self) -> None:
        """Begin a new conversation."""

    def step(self, tokens: Sequence[int]) -> int:
        """Append tokens to the conversation; the most probable next token."""

    def answer(self, call: Call) -> Said:
        """Answer an utterance."""


class Bundle:
    """A bundle, as a car runs it: answers under the tools' grammar, behind the prefix in its cache."""

    def __init__(self, path: Path, threads: int, task: str | None) -> None:
        import runtime

        self._assistant = runtime.load(path, threads=threads)
        self._assistant.use(task)

    def reset(self) -> None:
        """Begin a new conversation."""
        self._assistant.decoder.reset()

    def step(self, tokens: Sequence[int]) -> int:
        """Append tokens; the most probable next."""
        return int(self._assistant.decoder.feed(tokens).argmax())

    def answer(self, call: Call) -> Said:
        """From the utterance to checked calls; one that is cut off or wrong takes its time too."""
        answer = self._assistant.answer(call.utterance, call.max_new_tokens)
        with suppress(DataError):
            for found in parse_calls(answer.text, self._assistant.manifest.prompt.form):
                check_call(found, self._assistant.tools)
        return Said(answer.tokens, answer.timing)


class Torch:
    """A checkpoint, with or without an adapter, in transformers: greedy, with its cache."""

    def __init__(self, checkpoint: Path, adapter: Path | None, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        # float32, as the reference of parity. Attention not eager, as there, but what transformers chooses
        # for speed (sdpa): a slow torch would let any bundle look fast.
        base = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        self._model: torch.nn.Module = base.train(False)
        if adapter is not None:
            from peft import PeftModel

            self._model = PeftModel.from_pretrained(base, adapter).train(False)
        self._past: Any = None  # transformers' own cache, handed back as it came

    def reset(self) -> None:
        """Begin a new conversation."""
        self._past = None

    def step(self, tokens: Sequence[int]) -> int:
        """Append tokens; the most probable next."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([tokens])
            out = self._model(input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def answer(self, call: Call) -> Said:
        """From the prompt to the token that ends the turn."""
        self.reset()
        answer = [self.step(call.tokens)]
        while answer[-1] != call.stop and len(answer) < call.max_new_tokens:
            answer.append(self.step(answer[-1:]))
        return Said(answer, None)


def main(arguments: Sequence[str]) -> None:
    """Serve measurements until standard input ends."""
    replies = sys.stdout

    def reply(times_ms: Sequence[float], timing: Timing | None = None) -> None:
        replies.write(json.dumps(dataclasses.asdict(Reply(tuple(times_ms), peak_bytes(), timing))) + "\n")
        replies.flush()

    # What a library prints must not come between the replies.
    with redirect_stdout(sys.stderr):
        try:
            started = time.perf_counter()
            model = _load(*arguments)
            reply([_since(started)])
            for line in sys.stdin:
                reply(*_measure(model, from_json(Request, line)))
        except CockpitError as error:
            sys.exit(" ".join(str(error).split()))


def _load(kind: str, threads: str, path: str, beside: str | None = None) -> Model:
    if kind == "bundle":
        return Bundle(Path(path), int(threads), task=beside)
    return Torch(Path(path), Path(beside) if beside else None, int(threads))


def _measure(model: Model, request: Request) -> tuple[list[float], Timing | None]:
    if request.decode is not None:
        return _decode(model, request.decode), None
    assert request.call is not None
    started = time.perf_counter()
    said = model.answer(request.call)
    return [_since(started)], said.timing


def _decode(model: Model, request: Decode) -> list[float]:
    """The time of the prompt, then of each new token."""
    # Ids that every byte-level vocabulary has and none uses for control; which they are changes no time.
    tokens = np.random.default_rng(request.prompt_tokens).integers(100, 250, request.prompt_tokens).tolist()
    model.reset()
    times = []
    for _ in range(1 + request.new_tokens):
        started = time.perf_counter()
        token = model.step(tokens)
        times.append(_since(started))
        tokens = [token]
    return times


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main(sys.argv[1:])
