"""Exact calls of forms of one checkpoint: every form answers the same utterances, each with its own grammar.

Ours is asked as a car asks, peers with the text that our chat template makes of the utterance
(speed_contenders.py). What they say is read and checked as ours is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from quality_forms import Form, Peers
from speed_calls import MOST_NEW, call_tasks
from speed_contenders import Library, LlamaCpp

import runtime
from pipeline.config import Validate
from pipeline.data.records import Record, read_records
from pipeline.evidence.answers import bundle_replies, reply
from pipeline.evidence.statistics import mean
from pipeline.evidence.task import Reply


def exact_calls(
    forms: Sequence[Form], peers: Peers, data: Path, utterances: int | None, threads: int
) -> dict[str, dict[str, float]]:
    """Share of utterances with exactly the expected calls, and its 95 % interval, by the form's name.

    Args:
        forms: of any engine; at least one of ours, whose prompts all are given.
        peers: their programs.
        data: records.
        utterances: how many, spread evenly; None: all.
        threads: of each engine.
    """
    records = read_records(data)
    if utterances is not None:
        records = records[:: max(1, len(records) // utterances)][:utterances]
    bundle = next(form.path for form in forms if form.engine == "ours")
    tasks = call_tasks(bundle, [(data.parent.name, record.utterance) for record in records])
    assistant = runtime.load(bundle, threads=threads)
    found = {}
    for form in forms:
        if form.engine == "ours":
            replies = _ours(form.path, records, threads)
        else:
            with closing(_peer(form, peers, bundle / "tools.json", threads)) as running:
                replies = [reply(running.call(task).text, assistant) for task in tasks]
        exact = [float(said.calls == record.calls) for said, record in zip(replies, records, strict=True)]
        share = mean(exact)
        found[form.name] = {
            "utterances": len(records),
            "exact_call": share.value,
            "exact_call_low": share.low,
            "exact_call_high": share.high,
        }
    return found


def _ours(bundle: Path, records: Sequence[Record], threads: int) -> list[Reply]:
    assistant = runtime.load(bundle, threads=threads)
    return bundle_replies(Validate(max_new_tokens=MOST_NEW), assistant, records, _ignore)


def _peer(form: Form, peers: Peers, tools: Path, threads: int) -> Library | LlamaCpp:
    if form.engine == "OpenVINO":
        assert peers.openvino_python is not None
        return Library(peers.openvino_python, "speed_openvino.py", form.path, tools, threads)
    assert peers.llama is not None
    return LlamaCpp(peers.llama, form.path, tools, threads)


def _ignore(what: str, done: int, total: int) -> None:
    """No progress."""
