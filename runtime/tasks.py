"""Tasks of one model: each adapter, and the bare base, with a conversation of its own.

For several threads at once: a task is found, counted and removed under one lock, and whoever computes with
a task's conversation holds that conversation's. A task has one; it has more while an answer that somebody
reads piece by piece keeps the first to itself. An adapter's factors take memory while its task is in use or
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from threading import Lock

from runtime.adapters import Adapter
from runtime.decoder import Decoder
from runtime.errors import TaskError
from runtime.growing_decoder import GrowingDecoder
from runtime.lane import Lane
from runtime.prefix_cache import PrefixCache


class Used(Enum):
    """Stands for the task that was last given to `use`, where None is the bare base."""

    TASK = "the task in use"


class Tasks:
    """The bare base, and adapters by the names of their tasks.

    Lanes go by the digest of the adapter's file: a task that is added again under another name finds its
    cache, and one that comes back with other weights does not.
    """

    def __init__(
        self,
        base: Decoder | GrowingDecoder,
        prefix: Sequence[int] = (),
        saved: Callable[[Adapter | None], PrefixCache | None] = lambda adapter: None,
    ) -> None:
        """Begin with the bare base.

        Args:
            base: its conversation.
            prefix: what prompts begin with.
            saved: where the prefix of an adapter's prompts is kept, or the bare base's.
        """
        self._lock = Lock()
        self._prefix = prefix
        self._saved = saved
        self._adapters: dict[str, Adapter] = {}
        self._lanes: dict[str | None, list[Lane]] = {None: [Lane(base, prefix, saved(None))]}
        self._used: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every task, in order of name."""
        with self._lock:
            return tuple(sorted(self._adapters))

    @property
    def used(self) -> str | None:
        """The task in use; None: the bare base."""
        return self._used

    def add(self, adapter: Adapter) -> None:
        """Take an adapter for the task that it names.

        Raises:
            TaskError: there is a task of this name.
            BundleError: the model takes no adapters, or not this one's.
        """
        base = self._lanes[None][0].decoder
        if isinstance(base, GrowingDecoder):
            raise TaskError("this bundle's model has its adapter merged and takes no other")
        with self._lock:
            if adapter.name in self._adapters:
                raise TaskError(f'there is a task "{adapter.name}" already; remove it first')
            if adapter.digest not in self._lanes:
                self._lanes[adapter.digest] = [Lane(base.beside(adapter), self._prefix, self._saved(adapter))]
                adapter.rest()  # a provider with memory of its own has read the factors
            self._adapters[adapter.name] = adapter

    def remove(self, name: str) -> None:
        """Forget a task, and its cache with the last task of the same adapter.

        Raises:
            TaskError: there is no such task, it is in use, or it is answering.
        """
        with self._lock:
            adapter = self._adapters[self._known(name)]
            if name == self._used:
                raise TaskError(f'the task "{name}" is in use; use another or None, then remove it')
            alone = sum(other.digest == adapter.digest for other in self._adapters.values()) == 1
            if alone and any(lane.answering for lane in self._lanes[adapter.digest]):
                raise TaskError(f'the task "{name}" is answering; let its answers end, then remove it')
            del self._adapters[name]
            if alone:
                del self._lanes[adapter.digest]

    def use(self, name: str | None) -> None:
        """Make a task the one that is meant where none is named.

        Raises:
            TaskError: there is no such task.
        """
        with self._lock:
            before = self._of(Used.TASK)
            self._used = name if name is None else self._known(name)
            self._rest(before)

    def lane(self, task: str | Used | None) -> Lane:
        """The first conversation of a task.

        Raises:
            TaskError: there is no such task.
        """
        with self._lock:
            return self._of(task)[0]

    @contextmanager
    def answering(self, task: str | Used | None, alone: bool) -> Iterator[Lane]:
        """A conversation of a task, which cannot be removed until the context ends.

        Args:
            task: whose.
            alone: nobody else gets this conversation until then; else its lock decides who is next.

        Raises:
            TaskError: there is no such task.
        """
        with self._lock:
            lanes = self._of(task)
            free = (lane for lane in lanes if not lane.alone and not (alone and lane.answering))
            lane = next(free, None)
            if lane is None:
                lane = Lane(lanes[0].decoder.another(), self._prefix, lanes[0].saved)
                lanes.append(lane)
            lane.answering += 1
            lane.alone = alone
        try:
            yield lane
        finally:
            with self._lock:
                lane.answering -= 1
                lane.alone = False
                idle = [other for other in lanes if not other.answering]
                for spare in idle[1:]:
                    lanes.remove(spare)
                self._rest(lanes)

    def _rest(self, lanes: list[Lane]) -> None:
        """Let the factors of these lanes' adapter leave memory when nobody is about to need them."""
        decoder = lanes[0].decoder
        adapter = decoder.adapter if isinstance(decoder, Decoder) else None
        if (
            adapter is not None
            and lanes is not self._of(Used.TASK)
            and not any(lane.answering for lane in lanes)
        ):
            adapter.rest()

    def _of(self, task: str | Used | None) -> list[Lane]:
        name = self._used if isinstance(task, Used) else task
        return self._lanes[None if name is None else self._adapters[self._known(name)].digest]

    def _known(self, name: str) -> str:
        if name not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise TaskError(f'there is no task "{name}"; the tasks of this bundle: {known}')
        return name
