"""A candidate bundle and every form before it, measured against the unmerged model."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

import runtime
from pipeline.config import Validate
from pipeline.data.records import Record, read_records
from pipeline.data.render import Example, render
from pipeline.evidence.answers import base_and_unmerged, bundle_replies, generations, question
from pipeline.evidence.chain import measure_chain
from pipeline.evidence.form import Conversation, expected
from pipeline.evidence.latency import CallPrompt, Contender, measure_latency
from pipeline.evidence.links import adapter_in_use, merged_links, shipped_links, unmerged_links
from pipeline.evidence.own_calls import in_each_language
from pipeline.evidence.parity import check_cache
from pipeline.evidence.task import BUNDLE, UNMERGED, task_report
from pipeline.evidence.torch_model import TorchModel
from pipeline.fingerprint import fingerprint
from pipeline.merge import merge_weighted
from pipeline.merging.plan import Onto
from pipeline.stage import Progress, artifact
from pipeline.training.record import trained_in_nf4, trained_prompt
from runtime import Assistant
from runtime.decoder import Decoder
from runtime.errors import CheckpointError, DataError, GateError, InferenceError, UsageError
from runtime.manifest import Manifest
from runtime.report import CacheCheck, LatencyReport, ParityReport, RenderingCheck, TaskReport, to_json

SEED = 0
UNKNOWN_BASE = "unknown"
"""What a bundle says of its base when its ONNX came from elsewhere."""
FLOAT_CACHE_TOKENS = 14
"""Tokens that go through the cache with float activations: ONNX Runtime unpacks every weight anew for each,
and with floats a wrong cache shows at once."""


@dataclass(frozen=True)
class Model:
    """What a bundle was made from.

    Attributes:
        base: the base checkpoint, whose tokenizer is the training side's.
        beside: the base as the adapter knew it in training: `base`, or its 4-bit weights for QLoRA.
        adapter: the adapter that was trained.
        merged: the checkpoint that the bundle was exported from; None where the adapter stays unmerged.
        task: of a bundle with several, the one whose adapter it is.
    """

    base: Path
    beside: Path
    adapter: Path
    merged: Path | None
    task: str | None = None


def merge_again(base: Path, adapter: Path, scratch: Path, progress: Progress) -> Path:
    """The merged checkpoint, for a bundle that came without it, made in `scratch`.

    Raises:
        CockpitError: as `pipeline.merge.merge_weighted`.
    """
    folder = scratch / "merged"
    folder.mkdir()
    onto: Onto = "nf4" if trained_in_nf4(adapter) else "base"
    merge_weighted(base, [(adapter, 1.0)], folder, folder, progress, onto=onto, shard_bytes=None)
    return folder


def measure(
    settings: Validate,
    bundle: Path,
    others: Mapping[str, Path],
    model: Model,
    data: Path,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> Mapping[str, Any]:
    """Write `parity.json`, `task.json` and `latency.json`.

    Args:
        settings: how much to measure.
        bundle: the candidate.
        others: more bundles to time beside it, by name.
        model: what the candidate should be true to.
        data: test records, or a folder with `test.jsonl`.
        out: where the measurements go.
        scratch: an empty directory, for forms that the chain needs on the way.
        progress: told how it goes.

    Raises:
        BundleError: the candidate is damaged.
        GateError: the candidate gives numbers that are not finite, so there is nothing to compare.
        DataError: the test records are malformed, or there are none.
        UsageError: bundle and base do not belong together.
        TaskError: the bundle has no such task.
    """
    assistant = runtime.load(bundle, threads=settings.threads)
    assistant.use(model.task)
    refuse_strangers(assistant.manifest, model.base)
    records = _sample(read_records(data / "test.jsonl" if data.is_dir() else data), settings)
    if not records:
        raise DataError(f"{data} holds no test record, so there is nothing to measure on")
    tokenizer = _tokenizer(model.base)
    try:
        parity, task = measure_fidelity(
            settings, assistant, bundle, model, tokenizer, records, scratch, progress
        )
    except InferenceError as error:
        raise GateError(f"the candidate is refused: {error}") from error
    calls = _calls(settings, assistant, tokenizer, records, model.adapter)
    del assistant
    gc.collect()  # latency is measured in processes of their own, with the memory to themselves
    own = in_each_language(records, settings.own_calls)
    latency = _latency(settings, bundle, others, model, calls, own, progress)
    for name, report in (("parity", parity), ("task", task), ("latency", latency)):
        (out / f"{name}.json").write_text(to_json(report), encoding="utf-8")
    return {"conversations": min(len(records), settings.conversations), "utterances": len(task.answers)}


def refuse_strangers(manifest: Manifest, base: Path) -> None:
    """Refuse a base that the bundle says it was not made of.

    Raises:
        UsageError: its digest is another.
    """
    said = manifest.lineage.base
    # A build records the weights' digest; a stage that was run alone knows the folder's.
    if said not in (UNKNOWN_BASE, fingerprint(base).digest, artifact(base).digest):
        raise UsageError(
            f"this bundle and this base do not belong together: {manifest.name} was made of the base "
            f"{said[:12]}…, and {base} is {fingerprint(base).digest[:12]}…; name the base it was made of"
        )


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
    bundle: Path,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    scratch: Path,
    progress: Progress,
) -> tuple[ParityReport, TaskReport]:
    """Parity and task accuracy of a loaded bundle.

    Args:
        settings: how much to measure.
        assistant: the bundle, with the model's task in use.
        bundle: its directory.
        model: what it should be true to.
        tokenizer: the training side's.
        records: test records, already drawn; at least one.
        scratch: an empty directory.
        progress: told how it goes.

    Raises:
        InferenceError: a form gives numbers that are not finite.
        UsageError: bundle and base have other vocabularies.
    """
    examples = _examples(assistant, tokenizer, records, model.adapter)
    conversations = expected(records[: settings.conversations], examples[: settings.conversations])
    asked, answers = records[: settings.task_examples], examples[: settings.task_examples]
    origin = TorchModel(model.beside, model.adapter, settings.threads, settings.reference)
    if origin.vocabulary != assistant.decoder.vocabulary:
        raise UsageError(
            f"this bundle and this base do not belong together: their vocabularies have "
            f"{assistant.decoder.vocabulary} and {origin.vocabulary} tokens"
        )
    texts = base_and_unmerged(settings, origin, assistant, tokenizer, answers, progress)
    context = assistant.manifest.limits.context
    if model.merged is None:
        before = unmerged_links(settings, context, model.base, model.adapter, bundle, scratch)
    else:
        before = merged_links(settings, context, model.merged, scratch)
    links = [*before, *shipped_links(settings, assistant, bundle, scratch)]
    hops = measure_chain(origin, links, conversations, settings.near_tie, settings.threads, scratch, progress)
    del origin
    gc.collect()
    cached = conversations[: settings.decode_conversations]
    parity = ParityReport(
        hops=hops,
        cache=_cache(settings, assistant, scratch / "weights_only", cached, progress),
        rendering=_rendering(assistant, records, examples),
        generations=generations(settings, assistant, asked, texts.unmerged_tokens, progress),
    )
    replies = {**texts.replies, BUNDLE: bundle_replies(settings, assistant, asked, progress)}
    return parity, task_report([question(record, assistant) for record in asked], replies)


def _examples(
    assistant: Assistant, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], adapter: Path
) -> list[Example]:
    """Records as the training side renders them."""
    trained = trained_prompt(adapter)
    system = assistant.manifest.prompt.system if trained is None else trained
    return [render(record, tokenizer, assistant.tools, system) for record in records]


def _cache(
    settings: Validate,
    assistant: Assistant,
    weights_only: Path,
    conversations: Sequence[Conversation],
    progress: Progress,
) -> tuple[CacheCheck, ...]:
    """The bundle's cache, and for a quantized bundle the same loop over float activations."""
    progress("cache checks", 0, 0)
    shipped = check_cache("bundle", assistant.decoder, conversations)
    if not weights_only.exists():
        return shipped
    limits = assistant.manifest.limits
    floats = Decoder(weights_only, limits.context, limits.vocabulary, settings.threads)
    if (adapter := adapter_in_use(assistant)) is not None:
        floats = floats.beside(adapter)
    first = conversations[0]
    short = Conversation(first.id, first.tokens[:FLOAT_CACHE_TOKENS], first.start)
    return (*check_cache("weights_only", floats, [short]), *shipped)


def _rendering(
    assistant: Assistant, records: Sequence[Record], examples: Sequence[Example]
) -> RenderingCheck:
    different = [
        record.utterance
        for record, example in zip(records, examples, strict=True)
        if tuple(assistant.prompt(record.utterance)) != example.prompt
    ]
    return RenderingCheck(len(records), len(different), different[0] if different else "")


def _calls(
    settings: Validate,
    assistant: Assistant,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    adapter: Path,
) -> list[CallPrompt]:
    timed = records[: settings.timed_calls]
    examples = _examples(assistant, tokenizer, timed, adapter)
    return [
        CallPrompt(record.utterance, example.prompt, example.answer[-1])
        for record, example in zip(timed, examples, strict=True)
    ]


def _latency(
    settings: Validate,
    bundle: Path,
    others: Mapping[str, Path],
    model: Model,
    calls: Sequence[CallPrompt],
    own: Mapping[str, Sequence[str]],
    progress: Progress,
) -> LatencyReport:
    return measure_latency(
        (
            Contender(UNMERGED, "unmerged", model.beside, model.adapter),
            *([Contender("merged", "merged", model.merged)] if model.merged else []),
            Contender(BUNDLE, "bundle", bundle, task=model.task),
            *(Contender(name, "bundle", path) for name, path in others.items()),
        ),
        settings.prompt_tokens,
        settings.new_tokens,
        settings.latency_runs,
        calls,
        own,
        settings.max_new_tokens,
        settings.threads,
        lambda done, total: progress("latency", done, total),
    )
