"""What speed.py compares: each a process that stays alive through all rounds."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from speed_worker import CONTEXT, call_schema, peak_bytes

from pipeline.evidence import contender, latency
from pipeline.evidence.worker import Worker

_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a prompt, and of new tokens behind it."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class CallTask:
    """One utterance of a set, and the prompt that our chat template makes of it."""

    source: str
    utterance: str
    prompt: str
    prompt_tokens: int
    most_new: int


@dataclass(frozen=True)
class Called:
    """Milliseconds of one call; text is what a peer said, and reply what the process of our bundle did."""

    ms: float
    text: str = ""
    reply: contender.Reply | None = None


class Contender(Protocol):
    """What is timed. Close it when done."""

    load_ms: float

    def decode(self, prompt: int, new: int) -> Speed:
        """Feed a prompt of so many tokens, then decode behind it."""

    def call(self, task: CallTask) -> Called:
        """What it took from a prompt's text to the text of its calls."""

    def peak_bytes(self) -> int:
        """The largest resident set of its process until now."""

    def close(self) -> None:
        """End the process."""


class Bundle:
    """A bundle of ours, as `cockpit validate` times it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._running = latency.Running(latency.Contender(path.name, "bundle", path), threads)
        self.load_ms = self._running.load_ms

    def decode(self, prompt: int, new: int) -> Speed:
        """See `Contender`."""
        first, *each = self._running.ask(contender.Decode(prompt, new)).times_ms
        return Speed(1000 * prompt / first, 1000 * new / sum(each))

    def call(self, task: CallTask) -> Called:
        """See `Contender`."""
        reply = self._running.ask(contender.Call(task.utterance, (), 0, task.most_new))
        return Called(reply.times_ms[0], reply=reply)

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return self._running.peak_bytes

    def close(self) -> None:
        """See `Contender`."""
        self._running.__exit__()


class Library:
    """A peer in its own interpreter, behind a worker script that lies beside this file."""

    def __init__(self, python: Path, script: str, model: Path, tools: Path, threads: int) -> None:
        words = [python, Path(__file__).with_name(script), model, threads, tools]
        self._worker = Worker(f"{script} {model}", [str(word) for word in words])
        ready = json.loads(self._worker.ready)
        self.load_ms: float = ready["load_ms"]
        self._peak: int = ready["peak_bytes"]

    def decode(self, prompt: int, new: int) -> Speed:
        """See `Contender`."""
        took = self._ask({"decode": {"prompt_tokens": prompt, "new_tokens": new}})
        return Speed(1000 * prompt / took["prefill_ms"], 1000 * new / took["decode_ms"])

    def call(self, task: CallTask) -> Called:
        """See `Contender`."""
        said = self._ask({"call": {"prompt": task.prompt, "most_new": task.most_new}})
        _same_prompt(task, said["prompt_tokens"], "the worker")
        return Called(float(said["call_ms"]), str(said["text"]))

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return self._peak

    def close(self) -> None:
        """See `Contender`."""
        self._worker.__exit__()

    def _ask(self, request: object) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self._worker.ask(json.dumps(request)))
        self._peak = reply["peak_bytes"]
        return reply


class LlamaCpp:
    """llama.cpp: llama-bench for prefill and decode, llama-server for calls, load time and memory.

    The server constrains a call by the JSON Schema of the tools and keeps the part of the prompt that the
    last call had as well. Its other cache, of whole conversations, is off: copying them costs time here.
    """

    def __init__(self, programs: Path, gguf: Path, tools: Path, threads: int) -> None:
        self._bench = [programs / "llama-bench", "-m", gguf, "-t", threads, "-r", 1, "-o", "json"]
        self._schema = call_schema(tools)
        port = _free_port()
        server = [
            programs / "llama-server",
            "-m",
            gguf,
            "-t",
            threads,
            "-c",
            CONTEXT,
            "-np",
            1,
            "--port",
            port,
        ]
        with ExitStack() as opening:
            said = opening.enter_context(tempfile.TemporaryFile())
            started = time.perf_counter()
            self._server = subprocess.Popen(
                [str(word) for word in (*server, "--host", "127.0.0.1", "--cache-ram", 0)],
                stdout=said,
                stderr=said,
            )
            opening.callback(self._stop)
            self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
            self._wait()
            self.load_ms = 1000 * (time.perf_counter() - started)
            self._open = opening.pop_all()

    def decode(self, prompt: int, new: int) -> Speed:
        """See `Contender`."""
        prefill = _run([*self._bench, "-p", prompt, "-n", 0])
        decode = _run([*self._bench, "-p", 0, "-n", new, "-d", prompt])
        return Speed(prefill, decode)

    def call(self, task: CallTask) -> Called:
        """See `Contender`."""
        asked = {
            "prompt": task.prompt,
            "n_predict": task.most_new,
            "temperature": 0,
            "json_schema": self._schema,
            "cache_prompt": True,
        }
        body = json.dumps(asked)
        self._http.close()
        self._http.connect()  # the server hangs up on a client that is silent for some seconds
        started = time.perf_counter()
        self._http.request("POST", "/completion", body, {"Content-Type": "application/json"})
        reply = json.loads(self._http.getresponse().read())
        took = 1000 * (time.perf_counter() - started)
        if "content" not in reply:
            raise SystemExit(f"llama-server refuses the call: {reply}")
        _same_prompt(task, reply["tokens_evaluated"], "llama-server")
        return Called(took, str(reply["content"]))

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return peak_bytes(str(self._server.pid))

    def close(self) -> None:
        """See `Contender`."""
        self._open.close()

    def _wait(self) -> None:
        """Until the server says that the model is loaded."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and self._server.poll() is None:
            try:
                self._http.request("GET", "/health")
                reply = self._http.getresponse()
                reply.read()
                if reply.status == 200:
                    return
            except OSError:
                self._http.close()
            time.sleep(0.005)
        raise SystemExit("llama-server did not start; run it by hand to see why")

    def _stop(self) -> None:
        self._server.kill()
        self._server.wait()


def _same_prompt(task: CallTask, tokens: int, who: str) -> None:
    if tokens != task.prompt_tokens:
        raise SystemExit(
            f"{who} reads {tokens} tokens in the prompt of {task.utterance!r}, ours {task.prompt_tokens}: "
            "they do not answer the same prompt"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(command: list[object]) -> float:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])
