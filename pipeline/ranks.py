"""One `cockpit train` in several processes, as torchrun and `accelerate launch` start them.

Rank 0 makes directories and speaks. The others wait until they are told of base and data, take part in
training, write nothing, and end with rank 0's exit code. They tell each other through the launch's
key-value store (torch.distributed.Store), which still answers when the collectives of training do not.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import CockpitError, TrainingError, UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

    from pipeline.config import Config
    from pipeline.stage import Artifact, Progress
    from pipeline.stages import Plan

_LONGEST_WAIT = timedelta(days=7)
"""Longer than rank 0 takes to fetch a base and train. A rank 0 that dies takes the launch with it."""


def process_count() -> int:
    """Processes of this launch, 1 without one: WORLD_SIZE, as torch.distributed reads it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0: RANK."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def refuse_several(verb: str) -> None:
    """Stop a verb that is one process's work.

    Raises:
        UsageError: it was launched as several.
    """
    if process_count() > 1:
        raise UsageError(
            f"`cockpit {verb}` is the work of one process and was launched as {process_count()}; "
            "launch `cockpit train` as several, and everything else as one"
        )


class Team:
    """The processes of one launch, seen from one of them."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self.rank = store, rank

    def leading(self, plan: Plan, base: Artifact, data: Artifact) -> Plan:
        """The training stage as rank 0 runs it: the others are told where base, data and checkpoints are.

        Its work raises TrainingError when another rank has failed, with what that rank had to say.
        """

        def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
            told = {"base": str(base.path), "data": str(data.path), "scratch": str(scratch)}
            self._store.set("training", json.dumps(told))
            try:
                return plan.work(out, scratch, progress)
            except RuntimeError as error:
                # A collective that broke, most likely because another rank left it.
                if not self._store.check(["failure"]):
                    raise
                failure = json.loads(self._store.get("failure"))
                found = TrainingError(f"rank {failure['rank']}: {failure['sentence']}")
                found.add_note(failure["traceback"])
                raise found from error

        return replace(plan, work=work)

    def follow(self, settings: Config) -> int:
        """Take part in what rank 0 trains, and return the exit code that it ends with."""
        from pipeline.train import train

        told = self._told("training")
        if told:
            places = {name: Path(place) for name, place in json.loads(told).items()}
            scratch = places["scratch"]
            try:
                train(settings, places["base"], places["data"], scratch, scratch, _unseen)
            except Exception as error:  # noqa: BLE001 - whatever it is, rank 0 must not wait for this process
                self._fail(error)
        return int(self._told("exit code"))

    def end(self, exit_code: int) -> None:
        """Tell the others, who may still be waiting to begin, how rank 0 ended."""
        if not self._store.check(["training"]):
            self._store.set("training", "")
        self._store.set("exit code", str(exit_code))

    def _told(self, key: str) -> str:
        self._store.wait([key], _LONGEST_WAIT)
        return self._store.get(key).decode()

    def _fail(self, error: Exception) -> None:
        from torch import distributed

        sentence = str(error) if isinstance(error, CockpitError) else f"{type(error).__name__}: {error}"
        failure = {"rank": self.rank, "sentence": sentence, "traceback": traceback.format_exc()}
        # The first to fail is the cause: the others only lose their connection to it.
        self._store.compare_set("failure", "", json.dumps(failure))
        if distributed.is_initialized():
            # Its connections close, which ends whatever collective the others are waiting in.
            distributed.destroy_process_group()


@contextmanager
def join() -> Iterator[Team]:
    """Meet the other processes of the launch; a launch of one has only itself to meet."""
    from torch import distributed

    if process_count() == 1:
        store: Store = distributed.HashStore()
    else:
        store = next(distributed.rendezvous("env://"))[0]
    team = Team(distributed.PrefixStore("cockpit", store), rank())
    exit_code = CockpitError.exit_code
    try:
        yield team
        exit_code = 0
    except CockpitError as error:
        exit_code = error.exit_code
        raise
    finally:
        if team.rank == 0:
            team.end(exit_code)
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _unseen(message: str, done: int, total: int) -> None:
    """Progress of a rank that does not speak."""
