"""A process that answers a line with a line: what is timed has its memory and its load time to itself."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from runtime.errors import StageError

PATIENCE_S = 600.0
"""Longest wait for a process to be ready or for one line: what takes longer hangs."""


class Worker:
    """A program that runs in a process of its own. Use as a context manager."""

    def __init__(self, label: str, command: Sequence[str]) -> None:
        """Start it and wait for its first line: two that get ready at once would time each other.

        Args:
            label: names it in errors, such as `latency: the contender "bundle"`.
            command: writes a line when it is ready, then one for each that it reads.

        Raises:
            StageError: it stopped or hangs; its last line of output is the reason.
        """
        self._label = label
        with ExitStack() as opening:
            # A file, since a pipe that nobody reads would block whoever fills it.
            self._said = opening.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            )
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
            opening.callback(self._stop)
            self.ready = self._line()
            self._open = opening.pop_all()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer.

        Raises:
            StageError: the process stopped or hangs.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading below says why
        return self._line()

    def _line(self) -> str:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], PATIENCE_S)[0]:
            raise self._failure(f"has not answered for {PATIENCE_S:g} s")
        line = output.readline()
        if not line:
            raise self._failure(_ending(self._process.wait()))
        return line

    def _failure(self, what: str) -> StageError:
        self._said.seek(0)
        last = (self._said.read().strip() or "it said nothing").splitlines()[-1]
        return StageError(f"{self._label} {what}: {last}")

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module of ours in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def _ending(code: int) -> str:
    """A process killed from outside has no last word; the kernel kills the largest when memory is short."""
    if code == -signal.SIGKILL:
        return "was killed, as happens when memory runs out"
    return "stopped"
