"""How fast a bundle answers on this machine: load, time to first token, time per token, peak memory.

Nothing but the runtime is in the process, so the figures are a device's own.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.assistant import load
from runtime.errors import UsageError
from runtime.report import Distribution, distribution
from runtime.session import Provider


@dataclass(frozen=True)
class BenchResult:
    """Times in milliseconds, memory in bytes.

    Attributes:
        load_ms: verifying and opening the bundle, once.
        ttft: from a prompt of `prompt_tokens` to the logits of the first new token, without prefix reuse.
        token: each of the `new_tokens` decoded behind it.
        peak_bytes: the largest resident set of the process.
    """

    name: str
    precision: str
    provider: Provider
    threads: int
    prompt_tokens: int
    new_tokens: int
    runs: int
    load_ms: float
    ttft: Distribution
    token: Distribution
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_bytes: int


def bench(
    bundle: Path,
    prompt_tokens: int = 256,
    new_tokens: int = 64,
    runs: int = 5,
    threads: int = 2,
    provider: Provider = "cpu",
    cache: Path | None = None,
) -> BenchResult:
    """Measure a bundle; one more run than asked for comes first and is not counted.

    Raises:
        UsageError: a count is below 1, or threads, provider or cache cannot be had here.
        PromptError: prompt and new tokens do not fit the context.
        BundleError: the bundle is refused.
    """
    if min(prompt_tokens, new_tokens, runs) < 1:
        raise UsageError("prompt tokens, new tokens and runs must each be 1 or more")
    started = time.perf_counter()
    assistant = load(bundle, threads=threads, provider=provider, cache=cache)
    load_ms = _since(started)
    decoder = assistant.decoder
    prompt = np.random.default_rng(prompt_tokens).integers(0, decoder.vocabulary, prompt_tokens).tolist()
    ttft: list[float] = []
    each: list[float] = []
    for run in range(runs + 1):
        decoder.reset()
        started = time.perf_counter()
        token = int(decoder.feed(prompt).argmax())
        first = _since(started)
        steps = []
        for _ in range(new_tokens):
            started = time.perf_counter()
            token = int(decoder.feed([token]).argmax())
            steps.append(_since(started))
        if run:
            ttft.append(first)
            each += steps
    firsts, tokens = distribution(ttft), distribution(each)
    return BenchResult(
        name=assistant.manifest.name,
        precision=assistant.manifest.precision,
        provider=provider,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        runs=runs,
        load_ms=load_ms,
        ttft=firsts,
        token=tokens,
        prefill_tokens_per_second=prompt_tokens / firsts.p50 * 1000,
        decode_tokens_per_second=1000 / tokens.p50,
        peak_bytes=peak_bytes(),
    )


def peak_bytes() -> int:
    """Largest resident set of this process.

    On Linux from the kernel's mark for this program: `getrusage` would still count what the process
    that started it had in memory.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
