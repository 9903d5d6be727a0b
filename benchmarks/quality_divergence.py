"""How far forms are from their checkpoint in float32, on one text of in-car conversations.

The text is read in windows, of which the second half counts, as llama-perplexity reads one: markers of turns
are letters like any other. Every form reads the same token ids, as its engine runs it by default. Ours and
OpenVINO's are measured against the checkpoint's own float32 graph in ONNX Runtime, a GGUF against the float32
GGUF, which is what llama-perplexity can do.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quality_forms import Form, Peers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from export.checkpoint import export_checkpoint
from pipeline.config import DEFAULT_SYSTEM
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.evidence.form import Conversation, Logits
from pipeline.evidence.onnx_model import OnnxModel
from pipeline.evidence.parity import positions, summarize
from pipeline.evidence.worker import Worker
from runtime.calls import load_tools

NEAR_TIE = 0.0
"""llama-perplexity forgives no choice between two that are nearly tied, so neither is one forgiven here."""
_PRINTED = {
    "kl_mean": r"Mean +KLD: +([\d.]+)",
    "kl_p99": r"99\.0% +KLD: +([\d.]+)",
    "top1": r"Same top p: +([\d.]+)",
}
Found = dict[str, dict[str, float]]
Reads = Callable[[Conversation], Logits]
"""A window → logits (positions, V) where it counts."""


@dataclass(frozen=True)
class Windows:
    """A text, and its token ids in windows."""

    text: str
    width: int
    conversations: tuple[Conversation, ...]


def read_windows(checkpoint: Path, data: Sequence[Path], conversations: int, width: int) -> Windows:
    """Conversations of the files in turn, as the chat template writes them, in windows of `width` tokens."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tools = {file: load_tools(file.parent / "tools.json") for file in data}
    turns = itertools.zip_longest(*([(file, record) for record in read_records(file)] for file in data))
    chosen = [one for turn in turns for one in turn if one is not None][:conversations]
    examples = [render(record, tokenizer, tools[file], DEFAULT_SYSTEM) for file, record in chosen]
    text = "\n".join(str(tokenizer.decode([*example.prompt, *example.answer])) for example in examples)
    plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    plain.encode_special_tokens = True
    ids = plain.encode(text, add_special_tokens=False).ids
    whole = [tuple(ids[at : at + width]) for at in range(0, len(ids) - width + 1, width)]
    return Windows(
        text,
        width,
        tuple(Conversation(str(at), tokens, width // 2 + 1) for at, tokens in enumerate(whole)),
    )


def divergence(
    checkpoint: Path, forms: Sequence[Form], peers: Peers, windows: Windows, threads: int, scratch: Path
) -> Found:
    """Mean KL, 99 % KL and share of the same most probable token, by the form's name.

    Args:
        checkpoint: what the forms were made of.
        forms: of any engine.
        peers: their programs.
        windows: what everybody reads.
        threads: of each engine.
        scratch: an empty directory.
    """
    found: Found = {}
    with ExitStack() as stack:
        reads: dict[str, Reads] = {}
        for at, form in enumerate(forms):
            if form.engine == "ours":
                reads[form.name] = _onnx(form.path, scratch / f"traced{at}", threads)
            elif form.engine == "OpenVINO":
                assert peers.openvino_python is not None
                reads[form.name] = _openvino(
                    stack, peers.openvino_python, form.path, threads, scratch / f"logits{at}.npy"
                )
        if reads:
            (scratch / "fp32").mkdir()
            export_checkpoint(checkpoint, scratch / "fp32", "fp32", 32, windows.width, _ignore)
            found |= _against(_onnx(scratch / "fp32", scratch / "traced", threads), reads, windows)
    found |= dict(
        _llama([form for form in forms if form.engine == "llama.cpp"], peers, windows, threads, scratch)
    )
    return found


def _against(reference: Reads, reads: dict[str, Reads], windows: Windows) -> Found:
    """A window goes through all forms before the next."""
    parts = []
    for window in windows.conversations:
        wanted = reference(window)
        parts.append([positions(window, wanted, read(window), NEAR_TIE) for read in reads.values()])
    found = {}
    for name, measured in zip(reads, zip(*parts, strict=True), strict=True):
        figures = summarize(name, "fp32", measured, NEAR_TIE)
        found[name] = {
            "kl_mean": figures.kl_mean.value,
            "kl_p99": figures.kl_p99.value,
            "top1": figures.top1.value,
        }
    return found


def _onnx(folder: Path, scratch: Path, threads: int) -> Reads:
    model = OnnxModel(folder, scratch, threads, alone=True)
    return lambda window: model.logits([window])[0]


def _openvino(stack: ExitStack, python: Path, folder: Path, threads: int, file: Path) -> Reads:
    """Logits by way of a file: they are too many for a line."""
    words = [python, Path(__file__).with_name("quality_openvino.py"), folder, threads, file]
    worker = stack.enter_context(Worker(f"OpenVINO {folder}", [str(word) for word in words]))

    def read(window: Conversation) -> Logits:
        worker.ask(json.dumps(window.tokens))
        return window.counted(np.load(file))

    return read


def _llama(
    forms: Sequence[Form], peers: Peers, windows: Windows, threads: int, scratch: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    """As llama-perplexity prints them."""
    if not forms:
        return
    assert peers.llama is not None
    (scratch / "text").write_text(windows.text, encoding="utf-8")
    command = [peers.llama / "llama-perplexity", "-t", threads, "-c", windows.width]
    base = ["--kl-divergence-base", scratch / "reference"]
    _run([*command, *base, "-m", peers.gguf_f32, "-f", scratch / "text"])
    for form in forms:
        printed = _run([*command, *base, "--kl-divergence", "-m", form.path])
        figures = {key: _number(pattern, printed) for key, pattern in _PRINTED.items()}
        yield form.name, figures | {"top1": figures["top1"] / 100}


def _run(command: Sequence[object]) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _number(pattern: str, printed: str) -> float:
    match = re.search(pattern, printed)
    if match is None:
        raise SystemExit(f"llama-perplexity printed nothing like {pattern}")
    return float(match[1])


def _ignore(what: str, done: int, total: int) -> None:
    """No progress."""
