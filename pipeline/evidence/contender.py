"""One contender in a process of its own, so that its memory and its load time are its own.

`python -m pipeline.evidence.contender KIND THREADS PATH [ADAPTER]` loads a model, then answers
requests `prompt_tokens new_tokens` on standard input, a JSON line each. KIND is `bundle` (which
imports the runtime and nothing else of ours), `unmerged` or `merged` (torch).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runtime.bench import peak_bytes

Step = Callable[[Sequence[int]], int]
"""Append tokens to the conversation; the most probable next token."""


def _bundle(threads: int, path: Path) -> tuple[Callable[[], None], Step]:
    import runtime

    decoder = runtime.load(path, threads=threads).decoder
    return decoder.reset, lambda tokens: int(decoder.feed(tokens).argmax())


def _torch(threads: int, path: Path, adapter: Path | None) -> tuple[Callable[[], None], Step]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    merged = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    model = merged if adapter is None else PeftModel.from_pretrained(merged, adapter)
    model.train(False)
    cache: list[object] = []

    @torch.inference_mode()
    def step(tokens: Sequence[int]) -> int:
        past = cache.pop() if cache else None
        out = model(input_ids=torch.tensor([tokens]), past_key_values=past, use_cache=True, logits_to_keep=1)
        cache.append(out.past_key_values)
        return int(out.logits[0, -1].argmax())

    return cache.clear, step


def _measure(reset: Callable[[], None], step: Step, prompt_tokens: int, new_tokens: int) -> dict[str, object]:
    prompt = np.random.default_rng(prompt_tokens).integers(100, 400, prompt_tokens).tolist()
    reset()
    started = time.perf_counter()
    token = step(prompt)
    ttft = time.perf_counter() - started
    each = []
    for _ in range(new_tokens):
        started = time.perf_counter()
        token = step([token])
        each.append((time.perf_counter() - started) * 1000)
    return {"ttft_ms": ttft * 1000, "token_ms": each}


def main(arguments: Sequence[str]) -> None:
    """Serve measurements until standard input ends."""
    kind, threads, path, *adapter = arguments
    started = time.perf_counter()
    if kind == "bundle":
        reset, step = _bundle(int(threads), Path(path))
    else:
        reset, step = _torch(int(threads), Path(path), Path(adapter[0]) if adapter else None)
    _reply({"load_ms": (time.perf_counter() - started) * 1000})
    for line in sys.stdin:
        prompt_tokens, new_tokens = map(int, line.split())
        _reply({**_measure(reset, step, prompt_tokens, new_tokens), "peak_bytes": peak_bytes()})


def _reply(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
