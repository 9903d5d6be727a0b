"""The calls of speed.py: utterances of one set or several, and what the answers to them took."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from speed_contenders import Called, CallTask

from pipeline.evidence.own_calls import own_calls
from runtime.chat import Chat
from runtime.manifest import verify
from runtime.report import OwnCalls, distribution

MOST_NEW = 256
TOGETHER = "together"
"""Names all sets as one, where there are several."""


@dataclass(frozen=True)
class Calls:
    """What one contender's calls of a set took.

    Attributes:
        count: of utterances.
        p50_ms: median of their times.
        p95_ms: 95 % of them took less.
        ratio: how many times as fast the bundle that it is compared with answered: median over utterances.
        own: of a bundle of ours, where the time went.
    """

    count: int
    p50_ms: float
    p95_ms: float
    ratio: float | None
    own: OwnCalls | None


def spread(files: Sequence[Path], count: int) -> list[tuple[str, str]]:
    """Set and utterance, spread evenly over each file.

    Args:
        files: JSON lines with an `utterance` each; a set is named after the folder it is in.
        count: of utterances, of each file.

    Returns:
        One of each file in turn, so that all sets meet the same moods of the machine.
    """
    names = [file.resolve().parent.name for file in files]
    if twice := {name for name in (*names, TOGETHER) if (*names, TOGETHER).count(name) > 1}:
        raise SystemExit(f"these sets would have one name, rename the folders: {', '.join(sorted(twice))}")
    chosen = []
    for name, file in zip(names, files, strict=True):
        said = [json.loads(line)["utterance"] for line in file.read_text(encoding="utf-8").splitlines()]
        chosen.append([(name, utterance) for utterance in said[:: max(1, len(said) // count)][:count]])
    return [one for turn in itertools.zip_longest(*chosen) for one in turn if one is not None]


def call_tasks(bundle: Path, said: Sequence[tuple[str, str]]) -> list[CallTask]:
    """Each set and utterance, with the prompt that a bundle of ours makes of it.

    Raises:
        BundleError: the bundle is not what its manifest says.
    """
    manifest = verify(bundle)
    if manifest.prompt.form != "json":
        raise SystemExit(
            "calls are compared where an answer is one JSON array; this bundle's template has tags"
        )
    chat, tasks = Chat(bundle), []
    for source, utterance in said:
        tokens = chat.prompt(
            [
                {"role": "system", "content": manifest.prompt.system},
                {"role": "user", "content": utterance},
            ]
        )
        text = chat.tokenizer.decode(tokens, skip_special_tokens=False)
        tasks.append(CallTask(source, utterance, text, len(tokens), MOST_NEW))
    return tasks


def by_set(
    tasks: Sequence[CallTask], taken: Sequence[Called], ours: Sequence[Called] | None
) -> dict[str, Calls]:
    """One contender's calls, set by set, and behind them all together where there are several sets.

    Args:
        tasks: in the order they were asked.
        taken: the answer to each.
        ours: those of the bundle that it is compared with; None for a bundle of ours.
    """
    sets = list(dict.fromkeys(task.source for task in tasks))
    of_set = {name: [at for at, task in enumerate(tasks) if task.source == name] for name in sets}
    if len(sets) > 1:
        of_set[TOGETHER] = list(range(len(tasks)))
    return {
        name: _calls([taken[at] for at in chosen], None if ours is None else [ours[at] for at in chosen])
        for name, chosen in of_set.items()
    }


def table(found: Mapping[str, Mapping[str, Calls]]) -> Iterator[str]:
    """Lines for people: contender → set → its calls."""
    for name in next(iter(found.values())):
        count = next(iter(found.values()))[name].count
        yield f"\n{f'{count} calls, {name}':30}{'p50 ms':>9} {'×':>6} {'p95 ms':>9}   {_PARTS}"
        for contender, sets in found.items():
            calls = sets[name]
            ratio = " " * 6 if calls.ratio is None else f"{calls.ratio:6.2f}"
            parts = "" if calls.own is None else _parts(calls.own)
            yield f"{contender:30}{calls.p50_ms:9.1f} {ratio} {calls.p95_ms:9.1f}   {parts}".rstrip()


_PARTS = "runs behind the prompt, tokens; prefill, decode, grammar, Python"


def _parts(own: OwnCalls) -> str:
    parts = (own.prefill_ms, own.decode_ms, own.grammar_ms, own.python_ms)
    shares = ", ".join(f"{100 * part / sum(parts):.1f} %" for part in parts)
    return f"{own.runs:.1f}, {own.new_tokens:.1f}; {shares} of {sum(parts):.1f} ms"


def _calls(taken: Sequence[Called], ours: Sequence[Called] | None) -> Calls:
    times = distribution([call.ms for call in taken])
    replies = [call.reply for call in taken if call.reply is not None]
    ratio = None
    if ours is not None:
        ratio = median(peer.ms / own.ms for own, peer in zip(ours, taken, strict=True))
    return Calls(len(taken), times.p50, times.p95, ratio, own_calls(replies) if replies else None)
