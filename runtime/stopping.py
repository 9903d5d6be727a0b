"""When an answer has to stop before its end: at a time, or when somebody says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from runtime.errors import CancelledError, DeadlineError, UsageError

_POLL_S = 0.02
"""How long a thread that waits for its turn does not look whether it was told to stop."""


class Stopping:
    """Looked at before every run of the model, and while an answer waits for its turn."""

    def __init__(self, deadline_s: float | None, cancel: Event | None) -> None:
        """Start the clock.

        Args:
            deadline_s: seconds from now on; None: no limit.
            cancel: stops the answer once it is set, by whatever thread.

        Raises:
            UsageError: the deadline is not above 0.
        """
        if deadline_s is not None and not deadline_s > 0:
            raise UsageError(f"deadline_s must be above 0, not {deadline_s}")
        self._deadline_s = deadline_s
        self._end = None if deadline_s is None else time.monotonic() + deadline_s
        self._cancel = cancel

    def check(self) -> None:
        """Return if the answer may go on.

        Raises:
            DeadlineError: its time is up.
            CancelledError: it was told to stop.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError("the answer was cancelled")
        if self._end is not None and time.monotonic() >= self._end:
            raise DeadlineError(f"the answer was not there after {self._deadline_s:g} s; allow more time")

    @contextmanager
    def holding(self, lock: Lock) -> Iterator[None]:
        """Hold a lock, which others may hold for long.

        Raises:
            DeadlineError: as `check`, while waiting.
            CancelledError: as `check`, while waiting.
        """
        self.check()
        while not lock.acquire(timeout=_POLL_S):
            self.check()
        try:
            yield
        finally:
            lock.release()
