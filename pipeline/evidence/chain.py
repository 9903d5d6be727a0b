"""The chain from the unmerged model to the bundle: every form against the one before and the first.

One form is in memory at a time. Its logits go to a file, so that the next form, and for the first form
every later one, can be measured against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.evidence.form import Conversation, Form, Logits, Output
from pipeline.evidence.parity import positions, summarize
from runtime.report import Comparison, Hop, SiteError

TRACED = 2
"""Conversations whose intermediate outputs are compared: an operator is right or wrong for all alike."""
TRACED_TOKENS = 96
"""Their first tokens: attention looks back only, so the beginning of a conversation is a conversation."""


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
            for conversation in conversations:
                rows.write(np.ascontiguousarray(form.logits(conversation), np.float32).data)
                told()
        self._rows = np.memmap(file, np.float32, "r", shape=(int(ends[-1]), form.vocabulary))
        self.outputs: list[list[Output]] = [
            form.outputs(conversation.tokens[:TRACED_TOKENS]) for conversation in conversations[:TRACED]
        ]

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
    scratch: Path,
    progress: Callable[[str, int, int], None],
) -> tuple[Hop, ...]:
    """Measure each form against the form before it and against the origin.

    Args:
        origin: the unmerged model.
        links: the other forms, in order.
        conversations: at least one.
        near_tie: margin in logits below which a reference's choice counts as tied.
        scratch: a directory for logits: positions · vocabulary · 4 bytes, three times.
        progress: told the form, and how many of its conversations are done.

    Raises:
        InferenceError: a form gives numbers that are not finite.
        CockpitError: a form cannot be opened.
    """
    total = len(conversations)

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
        parts = [
            positions(conversation, reference.logits(index), found.logits(index), near_tie)
            for index, conversation in enumerate(conversations)
        ]
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


def _sites(
    before: Sequence[Sequence[Output]], after: Sequence[Sequence[Output]], step: Comparison
) -> tuple[SiteError, ...]:
    """The error of every operator that both forms show, and last that of the logits."""
    squares: dict[tuple[int | None, str], list[float]] = {}
    operators: dict[tuple[int | None, str], str] = {}
    for reference, found in zip(before, after, strict=True):
        wanted = {(output.layer, output.site): output.values for output in reference}
        for output in found:
            site = (output.layer, output.site)
            if site in wanted and wanted[site].shape == output.values.shape:
                sums = squares.setdefault(site, [0.0, 0.0])
                sums[0] += float(np.square(output.values - wanted[site], dtype=np.float64).sum())
                sums[1] += float(np.square(wanted[site], dtype=np.float64).sum())
                operators[site] = output.operator
    if not squares:
        return ()
    found_errors = [
        SiteError(layer, site, operators[layer, site], float(np.sqrt(error / (scale or 1.0))))
        for (layer, site), (error, scale) in squares.items()
    ]
    return (*found_errors, SiteError(None, "logits", "head", step.rms_relative_error.value))
