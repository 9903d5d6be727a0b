"""What rounding costs: bytes, KL and same tokens of exports and of GGUF files, on in-car conversations.

    python benchmarks/quality.py runs/smollm2-135m/merged --data shared/ms_automotive/validation.jsonl \
        --onnx int8=runs/smollm2-135m/bundle --gguf Q8_0=q8_0.gguf --gguf-f32 f32.gguf \
        --llama-perplexity llama.cpp/build/bin/llama-perplexity

The text is read in windows, of which the second half counts, as llama-perplexity reads one: markers of turns
are letters like any other. Ours are measured against the checkpoint's own float32 graph, a GGUF against the
float32 GGUF. Prints a table for people, then one JSON line for machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from export.checkpoint import export_checkpoint
from pipeline.config import DEFAULT_SYSTEM
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.evidence.form import Conversation
from pipeline.evidence.onnx_model import OnnxModel
from pipeline.evidence.parity import positions, summarize
from runtime.calls import load_tools

NEAR_TIE = 0.0
"""llama-perplexity forgives no choice between two that are nearly tied, so neither is one forgiven here."""
_PRINTED = {
    "kl_mean": r"Mean +KLD: +([\d.]+)",
    "kl_p99": r"99\.0% +KLD: +([\d.]+)",
    "top1": r"Same top p: +([\d.]+)",
}


def main() -> None:
    """Measure every form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="what the forms were made of")
    parser.add_argument(
        "--data", action="append", required=True, type=Path, help="records, tools.json beside"
    )
    parser.add_argument("--conversations", type=int, default=300, help="one of each file in turn")
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--onnx", action="append", default=[], type=_named, metavar="NAME=BUNDLE")
    parser.add_argument("--gguf", action="append", default=[], type=_named, metavar="NAME=FILE")
    parser.add_argument("--gguf-f32", type=Path, help="float32 GGUF of the checkpoint")
    parser.add_argument("--llama-perplexity", type=Path, help="the llama-perplexity program")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.gguf and not (options.gguf_f32 and options.llama_perplexity):
        parser.error("--gguf needs --gguf-f32 and --llama-perplexity")
    text = _text(options.checkpoint, options.data, options.conversations)
    windows = _windows(options.checkpoint, text, options.window)
    if len(windows) < 2:
        parser.error(f"{options.conversations} conversations fill fewer than two windows; give more --data")
    with tempfile.TemporaryDirectory() as scratch:
        found = dict(_ours(options, windows, Path(scratch)))
        found |= dict(_llama(options, text, Path(scratch)))
    print(f"{'':24} {'MB':>7} {'mean KL':>9} {'99 % KL':>9} {'same token':>10}")
    for name, figures in found.items():
        print(
            f"{name:24} {figures['bytes'] / 1e6:7.1f} {figures['kl_mean']:9.5f} {figures['kl_p99']:9.4f}"
            f" {100 * figures['top1']:9.2f}%"
        )
    print(json.dumps({"windows": len(windows), "window": options.window, **found}))


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError("a form is NAME=PATH")
    return name, Path(path)


def _text(checkpoint: Path, data: Sequence[Path], conversations: int) -> str:
    """Conversations of the files in turn, as the chat template writes them."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tools = {file: load_tools(file.parent / "tools.json") for file in data}
    turns = itertools.zip_longest(*([(file, record) for record in read_records(file)] for file in data))
    chosen = [one for turn in turns for one in turn if one is not None][:conversations]
    examples = [render(record, tokenizer, tools[file], DEFAULT_SYSTEM) for file, record in chosen]
    return "\n".join(str(tokenizer.decode([*example.prompt, *example.answer])) for example in examples)


def _windows(checkpoint: Path, text: str, width: int) -> list[Conversation]:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = [tuple(ids[at : at + width]) for at in range(0, len(ids) - width + 1, width)]
    return [Conversation(str(at), tokens, width // 2 + 1) for at, tokens in enumerate(whole)]


def _ours(
    options: argparse.Namespace, windows: Sequence[Conversation], scratch: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    """Figures of every form; a window goes through all of them before the next."""
    if not options.onnx:
        return
    (scratch / "fp32").mkdir()
    export_checkpoint(options.checkpoint, scratch / "fp32", "fp32", 32, options.window, _ignore)
    folders = [scratch / "fp32", *(folder for _, folder in options.onnx)]
    reference, *forms = [
        OnnxModel(folder, scratch / f"traced{at}", options.threads, alone=True)
        for at, folder in enumerate(folders)
    ]
    parts = []
    for window in windows:
        (wanted,) = reference.logits([window])
        parts.append([positions(window, wanted, form.logits([window])[0], NEAR_TIE) for form in forms])
    for (name, folder), measured in zip(options.onnx, zip(*parts, strict=True), strict=True):
        figures = summarize(name, "fp32", measured, NEAR_TIE)
        yield (
            name,
            {
                "bytes": sum(file.stat().st_size for file in folder.glob("*.onnx*")),
                "kl_mean": figures.kl_mean.value,
                "kl_p99": figures.kl_p99.value,
                "top1": figures.top1.value,
            },
        )


def _llama(options: argparse.Namespace, text: str, scratch: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Figures of every GGUF, as llama-perplexity prints them."""
    if not options.gguf:
        return
    (scratch / "text").write_text(text, encoding="utf-8")
    command = [options.llama_perplexity, "-t", options.threads, "-c", options.window]
    base = ["--kl-divergence-base", scratch / "reference"]
    _run([*command, *base, "-m", options.gguf_f32, "-f", scratch / "text"])
    for name, file in options.gguf:
        printed = _run([*command, *base, "--kl-divergence", "-m", file])
        figures = {key: _number(pattern, printed) for key, pattern in _PRINTED.items()}
        yield name, {"bytes": file.stat().st_size, **figures, "top1": figures["top1"] / 100}


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


if __name__ == "__main__":
    main()
