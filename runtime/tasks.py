"""Tasks of one model: each adapter, and the bare base, with a conversation of its own.

For several threads at once: a task is found, counted and removed under one lock, and whoever computes with
a task's conversation holds that task's. An adapter's factors take memory while its task is in use or answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from threading import Lock

from runtime.adapters import Adapter
from runtime.conversation import Mark
from runtime.decoder import Decoder
from runtime.errors import TaskError
from runtime.growing_decoder import GrowingDecoder


class Used(Enum):
    """Stands for the task that was last given to `use`, where None is the bare base."""

    TASK = "the task in use"


@dataclass(eq=False)
class Lane:
    """The conversation of everything that is computed with the same weights.

    Attributes:
        decoder: its cache holds keys and values of these weights alone.
        adapter: whose weights they are; None: the graph's own.
        lock: held by whoever uses the decoder.
        mark: where the common prefix of all prompts ends in the cache, once it is there.
        prefix_tokens: of the common prefix, those that the last answer had to compute.
        answering: answers that were begun and have not ended.
    """

    decoder: Decoder | GrowingDecoder
    adapter: Adapter | None = None
    lock: Lock = field(default_factory=Lock)
    mark: Mark | None = None
    prefix_tokens: int = 0
    answering: int = 0


class Tasks:
    """The bare base, and adapters by the names of their tasks.

    Lanes go by the digest of the adapter's file: a task that is added again under another name finds its
    cache, and one that comes back with other weights does not.
    """

    def __init__(self, base: Decoder | GrowingDecoder) -> None:
        self._lock = Lock()
        self._adapters: dict[str, Adapter] = {}
        self._lanes: dict[str | None, Lane] = {None: Lane(base)}
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
        base = self._lanes[None].decoder
        if isinstance(base, GrowingDecoder):
            raise TaskError("this bundle's model has its adapter merged and takes no other")
        with self._lock:
            if adapter.name in self._adapters:
                raise TaskError(f'there is a task "{adapter.name}" already; remove it first')
            if adapter.digest not in self._lanes:
                self._lanes[adapter.digest] = Lane(base.beside(adapter), adapter)
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
            if alone and self._lanes[adapter.digest].answering:
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
            before = self._lane(Used.TASK)
            self._used = name if name is None else self._known(name)
            self._rest(before)

    def lane(self, task: str | Used | None) -> Lane:
        """The conversation of a task.

        Raises:
            TaskError: there is no such task.
        """
        with self._lock:
            return self._lane(task)

    @contextmanager
    def answering(self, task: str | Used | None) -> Iterator[Lane]:
        """A task's conversation, which cannot be removed until the context ends.

        Raises:
            TaskError: there is no such task.
        """
        with self._lock:
            lane = self._lane(task)
            lane.answering += 1
        try:
            yield lane
        finally:
            with self._lock:
                lane.answering -= 1
                self._rest(lane)

    def _rest(self, lane: Lane) -> None:
        """Let an adapter's factors leave memory when nobody is about to need them."""
        if lane.adapter is not None and not lane.answering and lane is not self._lane(Used.TASK):
            lane.adapter.rest()

    def _lane(self, task: str | Used | None) -> Lane:
        name = self._used if isinstance(task, Used) else task
        return self._lanes[None if name is None else self._adapters[self._known(name)].digest]

    def _known(self, name: str) -> str:
        if name not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise TaskError(f'there is no task "{name}"; the tasks of this bundle: {known}')
        return name
