"""Every claim of the guide on one run: computed, or measured on this machine."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from pipeline.claims.finding import SCHEMA_VERSION, Claims, Finding
from pipeline.claims.function import compare_functions, function_findings
from pipeline.claims.guide import ATTENTION, CLAIMS, FEED_FORWARD, LARGE_RANK, SMALL_RANK
from pipeline.claims.inference_cost import inference_findings, measure_inference_cost
from pipeline.claims.parameters import Counts, count, from_files, from_shapes
from pipeline.claims.quality import STEPS, measure_quality, quality_findings
from pipeline.claims.subject import Subject
from pipeline.claims.trainee import Lora, Way
from pipeline.claims.training_cost import Ways, does_not_fit, measure_training_cost, training_findings
from pipeline.config import Config
from pipeline.evidence.contender import Decode
from pipeline.evidence.latency import this_machine
from pipeline.stage import Progress
from pipeline.training.precision import choose_precision

NEW_TOKENS = 16
"""Tokens decoded behind the prompt whenever inference is timed."""


def check_claims(config: Config, subject: Subject, progress: Progress) -> Claims:
    """Find out about every claim.

    Args:
        config: its `train` and `validate` tables are read.
        subject: the run.
        progress: told how it goes.

    Raises:
        CheckpointError: base or merged checkpoint cannot be read.
        AdapterError: the adapter is not understood.
        UsageError: the adapter is not LoRA's.
        StageError: a measuring process stopped or hangs.
        TrainingError: no learning rate trains.
    """
    progress("counting parameters", 0, 0)
    base, adapter, merged = subject.folders.base, subject.folders.adapter, subject.folders.merged
    counts = count(base, adapter)
    findings = [*from_shapes(counts), *from_files(base, merged, counts)]
    progress("comparing base, merged and unmerged", 0, 0)
    machine, precision = this_machine(), choose_precision(config.train.dtype)
    threads = config.train.threads or os.cpu_count() or 1
    reason = does_not_fit(counts.base, _memory(machine.memory_bytes))
    lora = _as_trained(counts)
    ways = _ways(config, base, lora, threads, fits=not reason)
    torch.set_num_threads(threads)
    functions = compare_functions(base, adapter, merged, lora, subject.validation)
    findings += function_findings(functions)
    gc.collect()
    request = Decode(max(config.validate_.prompt_tokens), NEW_TOKENS)
    speeds = measure_inference_cost(
        base,
        adapter,
        merged,
        request,
        config.validate_.threads,
        lambda done, total: progress("timing inference", done, total),
    )
    findings += inference_findings(speeds, request)
    costs = measure_training_cost(
        ways, subject.training, lambda done, total: progress("timing steps of training", done, total)
    )
    findings += training_findings(costs, reason)
    quality = measure_quality(
        ways,
        subject.training,
        subject.validation,
        lambda done, total: progress("training what is compared", done, total),
    )
    findings += quality_findings(quality, reason)
    return Claims(
        schema_version=SCHEMA_VERSION,
        name=config.name,
        machine=machine,
        threads=threads,
        device=torch.cuda.get_device_name() if precision.device == "cuda" else "cpu",
        dtype=str(precision.dtype).removeprefix("torch."),
        steps=STEPS,
        lineage=subject.lineage,
        findings=tuple(sorted(findings, key=_place)),
    )


def _place(finding: Finding) -> int:
    return CLAIMS.index(finding.claim)


def _as_trained(counts: Counts) -> Lora:
    """LoRA of the run's own rank, scale and layers."""
    rank = max(rank for _, _, rank in counts.layers.values())
    return Lora(rank, counts.scales[-1], tuple(name.removesuffix(".weight") for name in counts.layers))


def _ways(config: Config, base: Path, lora: Lora, threads: int, *, fits: bool) -> Ways:
    """Full fine-tuning, LoRA as given, and LoRA on the guide's projections at the ends of its ranks."""
    settings = config.train

    def way(trained: Lora | None) -> Way:
        return Way(
            str(base),
            trained,
            settings.adam_beta2,
            settings.weight_decay,
            settings.max_grad_norm,
            settings.dtype,
            threads,
        )

    seven = (*ATTENTION, *FEED_FORWARD)
    return Ways(
        full=way(None) if fits else None,
        lora=way(lora),
        small=way(Lora(SMALL_RANK, lora.scale, seven)),
        large=way(Lora(LARGE_RANK, lora.scale, seven)),
    )


def _memory(of_machine: int) -> int:
    """Bytes that training may fill: the GPU's where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return of_machine
