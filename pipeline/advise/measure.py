"""Memory and speed of both forms: memory in one process after the other, speed in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.advise.bundles import Bundles
from pipeline.advise.contender import Question, Ready, Times
from pipeline.evidence.worker import Worker, module_command
from runtime.report import from_json

ROUNDS = 9


@dataclass(frozen=True)
class Measured:
    """What was found. Every list has an entry for each counted round.

    Attributes:
        one: a merged bundle, alone in its process.
        all_merged: a merged bundle for each task in one process.
        single: the switchable bundle with the largest adapter alone.
        switchable: the switchable bundle with all tasks.
        merged_times: of a merged bundle.
        adapter_times: of the largest adapter's task.
        bare_times: of the switchable bundle's base without an adapter.
    """

    one: Ready
    all_merged: Ready
    single: Ready
    switchable: Ready
    merged_times: tuple[Times, ...]
    adapter_times: tuple[Times, ...]
    bare_times: tuple[Times, ...]


def measure(
    bundles: Bundles,
    prompt_tokens: int,
    new_tokens: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> Measured:
    """Get every form ready, then time them in rounds, of which the first is not counted.

    Args:
        bundles: what `write_bundles` wrote.
        prompt_tokens: of the prompt that is timed.
        new_tokens: decoded behind it.
        threads: of each process.
        progress: told rounds done and in all.

    Raises:
        StageError: a process stopped or hangs; its last line of output is the reason.
    """
    names = [adapter.name for adapter in bundles.adapters]
    task = bundles.largest.name
    other = next((name for name in names if name != task), None)
    progress(0, 1 + ROUNDS)
    # One alone after the other: what is larger than the memory here should fail by itself.
    all_merged = _alone("merged", bundles.merged, names, threads) if len(names) > 1 else None
    single = _alone("switchable", bundles.single, [task], threads) if len(names) > 1 else None
    times: dict[str, list[Times]] = {"merged": [], "adapter": [], "bare": []}
    with ExitStack() as stack:
        merged = stack.enter_context(_start("merged", bundles.merged, [task], threads))
        switchable = stack.enter_context(_start("switchable", bundles.switchable, names, threads))
        asked = {
            "merged": (merged, Question(task, task, prompt_tokens, new_tokens)),
            "adapter": (switchable, Question(task, other, prompt_tokens, new_tokens)),
            "bare": (switchable, Question(None, task, prompt_tokens, new_tokens)),
        }
        for turn in range(1 + ROUNDS):
            # Back and forth, so that nobody always comes after the same other.
            for name in sorted(asked, reverse=bool(turn % 2)):
                worker, question = asked[name]
                times[name].append(from_json(Times, worker.ask(json.dumps(asdict(question)))))
            progress(turn + 1, 1 + ROUNDS)
        one, tasks = (from_json(Ready, worker.ready) for worker in (merged, switchable))
    return Measured(
        one=one,
        all_merged=all_merged or one,
        single=single or tasks,
        switchable=tasks,
        merged_times=tuple(times["merged"][1:]),
        adapter_times=tuple(times["adapter"][1:]),
        bare_times=tuple(times["bare"][1:]),
    )


def _alone(form: str, bundle: Path, names: list[str], threads: int) -> Ready:
    with _start(form, bundle, names, threads) as worker:
        return from_json(Ready, worker.ready)


def _start(form: str, bundle: Path, names: list[str], threads: int) -> Worker:
    label = f"advise: the {form} bundle with {len(names)} task{'s' if len(names) > 1 else ''}"
    return Worker(
        label, module_command("pipeline.advise.contender", [form, str(threads), str(bundle), *names])
    )
