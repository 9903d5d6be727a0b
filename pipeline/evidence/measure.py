"""A candidate bundle, run through `runtime`, measured against the unmerged model."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

import runtime
from pipeline.config import Validate
from pipeline.data.packing import common_prefix
from pipeline.data.prepare import domain
from pipeline.data.records import Record, read_records
from pipeline.data.render import Example, render
from pipeline.evidence.latency import Contender, measure_latency
from pipeline.evidence.parity import Conversation, check_cache, compare
from pipeline.evidence.reference import Unmerged
from pipeline.evidence.task import BUNDLE, UNMERGED, Question, Reply, task_report
from pipeline.stage import Progress
from runtime import Assistant
from runtime.calls import AnswerForm, call_text, check_call, parse_calls
from runtime.errors import CheckpointError, DataError, GateError, InferenceError
from runtime.report import LatencyReport, ParityReport, RenderingCheck, TaskReport, to_json

BASE = "base"
SEED = 0
_OPENING: Mapping[AnswerForm, str] = {"json": "[", "hermes": "<tool_call>"}


def measure(
    settings: Validate, bundle: Path, base: Path, adapter: Path, data: Path, out: Path, progress: Progress
) -> Mapping[str, Any]:
    """Write `parity.json`, `task.json` and `latency.json`.

    Args:
        settings: how much to measure.
        bundle: the candidate.
        base: the base checkpoint, whose tokenizer is the training side's.
        adapter: the adapter that was trained on it.
        data: test records, or a folder with `test.jsonl`.
        out: where the measurements go.
        progress: told how it goes.

    Raises:
        BundleError: the candidate is damaged.
        GateError: the candidate gives numbers that are not finite, so there is nothing to compare.
        DataError: the test records are malformed.
    """
    assistant = runtime.load(bundle, threads=settings.threads)
    records = _sample(read_records(data / "test.jsonl" if data.is_dir() else data), settings)
    tokenizer = _tokenizer(base)
    try:
        parity, task = measure_fidelity(
            settings, assistant, Unmerged(base, adapter, settings.threads), tokenizer, records, progress
        )
    except InferenceError as error:
        raise GateError(f"the candidate is refused: {error}") from error
    del assistant
    gc.collect()  # latency is measured in processes of their own, with the memory to themselves
    latency = _latency(settings, bundle, base, adapter, progress)
    for name, report in (("parity", parity), ("task", task), ("latency", latency)):
        (out / f"{name}.json").write_text(to_json(report), encoding="utf-8")
    return {"conversations": settings.conversations, "utterances": len(task.answers)}


def _sample(records: Sequence[Record], settings: Validate) -> list[Record]:
    """As many records as will be measured, drawn so that a file sorted by kind gives some of each."""
    wanted = min(len(records), max(settings.conversations, settings.task_examples))
    return random.Random(SEED).sample(records, wanted)


def _tokenizer(base: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {base}: {error}") from error
    return tokenizer


def measure_fidelity(
    settings: Validate,
    assistant: Assistant,
    reference: Unmerged,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    progress: Progress,
) -> tuple[ParityReport, TaskReport]:
    """Parity and task accuracy of a loaded bundle.

    Args:
        settings: how much to measure.
        assistant: the bundle.
        reference: the unmerged model.
        tokenizer: the training side's.
        records: test records, already drawn.
        progress: told how it goes.

    Raises:
        InferenceError: the bundle gives numbers that are not finite.
    """
    examples = [
        render(record, tokenizer, assistant.tools, assistant.manifest.prompt.system) for record in records
    ]
    conversations = _conversations(records[: settings.conversations], examples[: settings.conversations])
    total = len(conversations)
    comparison = compare(
        BUNDLE,
        UNMERGED,
        conversations,
        reference.logits,
        assistant.decoder.score,
        settings.near_tie,
        lambda done: progress("parity", done, total),
    )
    progress("cache checks", 0, 0)
    parity = ParityReport(
        comparisons=(comparison,),
        cache=check_cache(assistant.decoder, conversations[: settings.decode_conversations]),
        rendering=_rendering(assistant, records, examples),
    )
    asked = settings.task_examples
    return parity, _task(
        settings, assistant, reference, tokenizer, records[:asked], examples[:asked], progress
    )


def _conversations(records: Sequence[Record], examples: Sequence[Example]) -> list[Conversation]:
    """Prompt and expected answer; what all prompts share is the same every time, so it is not counted."""
    shared = len(common_prefix([example.prompt for example in examples]))
    return [
        Conversation(record.id, (*example.prompt, *example.answer), max(shared, 1))
        for record, example in zip(records, examples, strict=True)
    ]


def _rendering(
    assistant: Assistant, records: Sequence[Record], examples: Sequence[Example]
) -> RenderingCheck:
    different = [
        record.utterance
        for record, example in zip(records, examples, strict=True)
        if tuple(assistant.prompt(record.utterance)) != example.prompt
    ]
    return RenderingCheck(len(records), len(different), different[0] if different else "")


def _task(
    settings: Validate,
    assistant: Assistant,
    reference: Unmerged,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    examples: Sequence[Example],
    progress: Progress,
) -> TaskReport:
    prompts, total = [example.prompt for example in examples], len(examples)

    opening = _OPENING[assistant.manifest.prompt.form]

    def hopeless(answer: Sequence[int]) -> bool:
        # A list of calls has one opening: an answer that begins otherwise is wrong, however it goes on.
        text = str(tokenizer.decode(list(answer))).lstrip()
        return not (text.startswith(opening) or opening.startswith(text))

    def answered(name: str, adapter: bool) -> list[Reply]:
        answers = reference.answers(
            prompts,
            examples[0].answer[-1],
            settings.max_new_tokens,
            hopeless,
            adapter=adapter,
            progress=lambda done: progress(f"{name} answers", done, total),
        )
        return [_reply(str(tokenizer.decode(answer)), assistant) for answer in answers]

    replies = {BASE: answered(BASE, False), UNMERGED: answered(UNMERGED, True), BUNDLE: []}
    for done, record in enumerate(records, 1):
        replies[BUNDLE].append(_asked(assistant, record.utterance, settings.max_new_tokens))
        progress("bundle answers", done, total)
    return task_report([_question(record, assistant) for record in records], replies)


def _reply(text: str, assistant: Assistant) -> Reply:
    """An answer's calls, where they parse and satisfy the tools' schemas."""
    try:
        calls = parse_calls(text, assistant.manifest.prompt.form)
        for call in calls:
            check_call(call, assistant.tools)
    except DataError:
        return Reply(text, None)
    return Reply(text, calls)


def _asked(assistant: Assistant, utterance: str, max_new_tokens: int) -> Reply:
    """The bundle's answer as a car would get it: constrained to the tools' grammar."""
    answer = assistant.answer(utterance, max_new_tokens)
    return _reply(answer.text, assistant) if answer.complete else Reply(answer.text, None)


def _question(record: Record, assistant: Assistant) -> Question:
    domains = {domain(call.name) for call in record.calls}
    return Question(
        id=record.id,
        utterance=record.utterance,
        language=record.lang,
        domain="refusal" if not domains else "several" if len(domains) > 1 else domains.pop(),
        calls=record.calls,
        text=call_text(record.calls, assistant.tools, assistant.manifest.prompt.form),
    )


def _latency(
    settings: Validate, bundle: Path, base: Path, adapter: Path, progress: Progress
) -> LatencyReport:
    return measure_latency(
        (Contender(UNMERGED, "unmerged", base, adapter), Contender(BUNDLE, "bundle", bundle)),
        settings.prompt_tokens,
        settings.new_tokens,
        settings.latency_runs,
        settings.threads,
        lambda done, total: progress("latency", done, total),
    )
