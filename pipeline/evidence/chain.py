"""The chain from the unmerged model to the bundle: every form against the one before and the first.

One form is in memory at a time. Its logits go to a file, so that the next form, and for the first form
every later one, can be measured against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.evidence.form import Conversation, Form, Logits, Output, alike
from pipeline.evidence.parity import Positions, positions, summarize
from runtime.report import Comparison, Hop, SiteError

TOGETHER_TOKENS = 1024
"""Most tokens of conversations that are run side by side where a form allows it."""
TRACED_TOKENS = 96
"""First tokens of the longest conversation, whose intermediate outputs are compared: an operator is right
or wrong for all alike; attention looks back only, so the beginning of a conversation is a conversation."""


@dataclass(frozen=True)
class Link:
    """A form that is opened when its turn comes.

    Attributes:
        name: see `runtime.report.Hop`.
        weights: number format of its weights.
        open: loads it.
    """

    name: str
    weights: str
    open: Callable[[], Form]


class _Recording:
    """What a form said: logits (all counted positions, V) in a file, and its operators' outputs."""

    def __init__(
        self,
        name: str,
        form: Form,
        conversations: Sequence[Conversation],
        file: Path,
        told: Callable[[], None],
    ) -> None:
        self.name = name
        ends = np.cumsum([0, *(conversation.positions for conversation in conversations)])
        self._spans = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        self._file = file
        # Written, then mapped: a full disk under a map that is written to would end the process.
        with file.open("wb") as rows:
            for group in alike([len(one.tokens) for one in conversations], TOGETHER_TOKENS):
                for logits in form.logits([conversations[index] for index in group]):
                    rows.write(np.ascontiguousarray(logits, np.float32).data)
                    told()
        self._rows = np.memmap(file, np.float32, "r", shape=(int(ends[-1]), form.vocabulary))
        self.outputs = form.outputs(conversations[-1].tokens[:TRACED_TOKENS])

    def logits(self, index: int) -> Logits:
        """Logits (positions, V) of one conversation."""
        start, stop = self._spans[index]
        return np.asarray(self._rows[start:stop])

    def delete(self) -> None:
        """Give the disk back."""
        del self._rows
        self._file.unlink()


def measure_chain(
    origin: Form,
    links: Sequence[Link],
    conversations: Sequence[Conversation],
    near_tie: float,
    threads: int,
    scratch: Path,
    progress: Callable[[str, int, int], None],
) -> tuple[Hop, ...]:
    """Measure each form against the form before it and against the origin.

    Args:
        origin: the unmerged model.
        links: the other forms, in order.
        conversations: at least one.
        near_tie: margin in logits below which a reference's choice counts as tied.
        threads: that compare logits.
        scratch: a directory for logits: positions · vocabulary · 4 bytes, three times.
        progress: told the form, and how many of its conversations are done.

    Raises:
        InferenceError: a form gives numbers that are not finite.
        CockpitError: a form cannot be opened.
    """
    total = len(conversations)
    # Shortest first, as groups of like length come: logits lie in the file in the order they are asked for.
    conversations = sorted(conversations, key=lambda conversation: len(conversation.tokens))

    def record(name: str, form: Form) -> _Recording:
        done = iter(range(1, total + 1))
        return _Recording(
            name,
            form,
            conversations,
            scratch / f"{name}.logits",
            lambda: progress(f"chain: {name}", next(done), total),
        )

    def compare(found: _Recording, reference: _Recording) -> Comparison:
        def part(index: int) -> Positions:
            return positions(conversations[index], reference.logits(index), found.logits(index), near_tie)

        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(part, range(total)))
        return summarize(found.name, reference.name, parts, near_tie)

    first = previous = record("unmerged", origin)
    hops: list[Hop] = []
    for link in links:
        current = record(link.name, link.open())
        step = compare(current, previous)
        whole = step if previous is first else compare(current, first)
        hops.append(Hop(step, whole, link.weights, _sites(previous.outputs, current.outputs, step)))
        if previous is not first:
            previous.delete()
        previous = current
    for recording in {first, previous}:
        recording.delete()
    return tuple(hops)


def _sites(before: Sequence[Output], after: Sequence[Output], step: Comparison) -> tuple[SiteError, ...]:
    """The error of every operator that both forms show, and last that of the logits."""
    wanted = {(output.layer, output.site): output.values for output in before}
    found = []
    for output in after:
        reference = wanted.get((output.layer, output.site))
        if reference is not None and reference.shape == output.values.shape:
            error = np.square(output.values - reference, dtype=np.float64).sum()
            scale = np.square(reference, dtype=np.float64).sum() or 1.0
            found.append(SiteError(output.layer, output.site, output.operator, float(np.sqrt(error / scale))))
    if not found:
        return ()
    return (*found, SiteError(None, "logits", "head", step.rms_relative_error.value))
