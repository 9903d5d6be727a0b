"""Where the time of a call goes, what a run of several tokens costs, and what drafts would save.

    python benchmarks/call_time.py runs/smollm2-135m/bundle runs/smollm2-135m/data/test.jsonl

Answers the records' utterances, and prints runs of the model and shares of the time. Then it times runs of 1
to 24 tokens, and counts on the records' own answers what prompt lookup would make of them (two tokens,
those behind the last one's first place in the utterance), if a run cost what it just did and the logits of a
further position HEAD_MS. Nothing is compared with a peer. Prints a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

import runtime
from pipeline.data.records import read_records
from runtime.assistant import Assistant
from runtime.calls import call_text

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
ROUNDS = 60
DRAFT = 2
HEAD_MS = 0.15
"""Of head.onnx on two threads: 0.7 ms for one position, 1.15 ms for four."""


def main() -> None:
    """Answer, time and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("records", type=Path, help="JSON Lines of utterances and calls")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=200, help="records that are read (default 200)")
    options = parser.parse_args()
    assistant = runtime.load(options.bundle, threads=options.threads)
    records = read_records(options.records)[: options.most]
    shares = answered(assistant, [record.utterance for record in records])
    costs = run_ms(assistant)
    texts = [call_text(record.calls, assistant.tools, assistant.manifest.prompt.form) for record in records]
    drafted = with_drafts(assistant, [record.utterance for record in records], texts, costs)
    for name, value in {**shares, **drafted}.items():
        print(f"{name:24} {value:9.2f}")
    for length, cost in zip(LENGTHS, costs, strict=True):
        print(f"a run of {length:2} tokens       {cost:9.2f} ms")
    runs = dict(zip(LENGTHS, costs, strict=True))
    print(json.dumps({"records": len(records), "call": shares, "run_ms": runs, "drafts": drafted}))


def answered(assistant: Assistant, utterances: Sequence[str]) -> dict[str, float]:
    """Means over the utterances, of what `Timing` has."""
    assistant.answer(utterances[0])
    timings = [asdict(assistant.answer(utterance).timing) for utterance in utterances]
    return {name: statistics.mean(timing[name] for timing in timings) for name in timings[0]}


def run_ms(assistant: Assistant) -> list[float]:
    """Median milliseconds of a run of each length, behind a prompt; the lengths in turn."""
    decoder = assistant.decoder
    decoder.reset()
    decoder.feed(assistant.prompt("make it 28 degrees for the back row now"))
    behind = decoder.length
    tokens = np.random.default_rng(0).integers(100, 250, max(LENGTHS)).tolist()
    times: list[list[float]] = [[] for _ in LENGTHS]
    for _ in range(ROUNDS):
        for length, taken in zip(LENGTHS, times, strict=True):
            decoder.rewind(behind)
            started = time.perf_counter()
            decoder.feed(tokens[:length])
            taken.append((time.perf_counter() - started) * 1000)
    return [statistics.median(taken) for taken in times]


def with_drafts(
    assistant: Assistant, utterances: Sequence[str], texts: Sequence[str], costs: Sequence[float]
) -> dict[str, float]:
    """Runs behind the prompt and their time for these answers, as they are and with prompt lookup."""
    tokenizer = assistant._chat.tokenizer
    stop = assistant.manifest.prompt.stop_tokens[0]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def cost(length: int) -> float:
        return float(np.interp(length, LENGTHS, costs))

    plain: list[list[float]] = []
    drafted: list[list[float]] = []
    for utterance, text in zip(utterances, texts, strict=True):
        whole = [*encode(text), stop]
        answer = assistant._constraint.begin()
        said = answer.forced()
        steps: list[list[int]] = []
        while len(said) < len(whole):
            steps.append(answer.take(whole[len(said)]))
            said += steps[-1]
        fed = steps[:-1]  # nothing is chosen behind the last
        spoken = [encode(utterance), encode(f" {utterance}")]
        plain.append([cost(len(step)) for step in fed])
        drafted.append(list(runs_with_drafts(fed, spoken, cost)))
    count = len(utterances)
    return {
        "runs_of_the_answer": sum(map(len, plain)) / count,
        "ms_of_the_answer": sum(map(sum, plain)) / count,
        "runs_with_drafts": sum(map(len, drafted)) / count,
        "ms_with_drafts": sum(map(sum, drafted)) / count,
    }


def runs_with_drafts(
    fed: Sequence[Sequence[int]], spoken: Sequence[Sequence[int]], cost: Callable[[int], float]
) -> list[float]:
    """Milliseconds of each run, where every step tries a draft."""
    found, at = [], 0
    while at < len(fed):
        last = fed[at][-1]
        drafts = [list(text[text.index(last) + 1 :][:DRAFT]) for text in spoken if last in text]
        draft = next((each for each in drafts if each), [])
        found.append(cost(len(fed[at]) + len(draft)) + HEAD_MS * len(draft))
        at += 1
        for token in draft:
            if at == len(fed) or list(fed[at]) != [token]:
                break
            at += 1
    return found


if __name__ == "__main__":
    main()
