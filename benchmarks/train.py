"""Training beside TRL's SFTTrainer: the same examples, method and rate, in turn on one machine.

    python benchmarks/train.py configs/smollm2-135m.toml --peer-python trl/bin/python

Ours trains completions behind one copy of the prefix that their prompts share; SFTTrainer trains each
conversation whole, in padded batches of as many. Each prompt (the config's, and one with a long list of
tools) is trained by both in turn, `--rounds` times; speed counts conversations and their tokens, the same
ones for both, however often a trainer computes them. Both adapters are then judged by one function on the
same validation conversations. Prints a table for people, then one JSON line for machines.
benchmarks/README.md says how to make the peer's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pipeline.build import build
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.console import BuildDisplay, StageDisplay
from pipeline.data.packing import Row, common_prefix, pack
from pipeline.data.records import Record, read_records, write_records
from pipeline.data.render import Example, render
from pipeline.evidence.latency import this_machine
from pipeline.quiet import quiet_transformers
from pipeline.train import train
from pipeline.training.attention import PACKED
from pipeline.training.batches import IGNORED, mean_loss
from pipeline.training.precision import choose_precision
from runtime.calls import Tool, load_tools
from runtime.errors import CockpitError, StageError, UsageError

PEER = Path(__file__).with_name("train_peer.py")
LIKE = 0.05
"""Largest relative difference of two validation losses that count as the same."""


@dataclass(frozen=True)
class Data:
    """Records, and what renders them."""

    tokenizer: PreTrainedTokenizerBase
    tools: tuple[Tool, ...]
    folder: Path
    train: tuple[Record, ...]
    validation: tuple[Record, ...]

    def examples(self, records: Sequence[Record], system: str) -> list[Example]:
        """The token ids of records behind a system prompt."""
        return [render(record, self.tokenizer, self.tools, system) for record in records]


@dataclass(frozen=True)
class Run:
    """One training."""

    examples_per_second: float
    validation_loss: float


@dataclass(frozen=True)
class Found:
    """One prompt, every round.

    Attributes:
        prefix_tokens: that all prompts share.
        examples: trained on, once in each round.
        conversation_tokens: of those, prompt and answer.
        fed_tokens: that our model was fed for them.
        batch: conversations of one optimizer step of the peer; on average, of ours.
        ours: a run a round.
        peer: likewise.
    """

    prefix_tokens: int
    examples: int
    conversation_tokens: int
    fed_tokens: int
    batch: int
    ours: tuple[Run, ...]
    peer: tuple[Run, ...]


def main() -> None:
    """Measure both prompts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--peer-python", required=True, type=Path, help="an interpreter that has trl")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where base and data are, or are made"
    )
    parser.add_argument("--examples", type=int, default=256, help="conversations of one training")
    parser.add_argument("--tool-tokens", type=int, default=600, help="length of the prompt with tools")
    parser.add_argument("--batch", type=int, default=8, help="conversations of a step; SFTTrainer's default")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        measure(options)
    except CockpitError as error:
        sys.exit(f"train.py: {error}")


def measure(options: argparse.Namespace) -> None:
    """Train, judge and print.

    Raises:
        UsageError: an option is out of range, or the peer's interpreter is not there.
        StageError: the peer failed; its last line is the reason.
        CockpitError: base or data cannot be made, or a training failed.
    """
    if min(options.examples, options.tool_tokens, options.batch, options.rounds) < 1:
        raise UsageError("--examples, --tool-tokens, --batch and --rounds must each be 1 or more")
    if not options.peer_python.is_file():
        raise UsageError(
            f"no interpreter at {options.peer_python}; benchmarks/README.md says how to make one"
        )
    config = load_config(options.config)
    with BuildDisplay(Console(stderr=True)) as display:
        built = build(config, options.runs, display, until="data")
    base, folder = built.run / "base", built.run / "data"
    data = Data(
        AutoTokenizer.from_pretrained(base, local_files_only=True),
        load_tools(folder / "tools.json"),
        folder,
        tuple(read_records(folder / "train.jsonl")[: options.examples]),
        tuple(read_records(folder / "validation.jsonl")),
    )
    prompts = {"default": config.data.system, "tools": tool_prompt(config, data, options.tool_tokens)}
    threads = config.train.threads or os.cpu_count() or 1
    found: dict[str, Found] = {}
    print(f"{'':8} {'examples/s':>27} {'conversation tokens/s':>27} {'validation loss':>20}")
    print(f"{'':8} {'ours':>9} {'TRL':>9} {'ratio':>7} {'ours':>9} {'TRL':>9} {'':7} {'ours':>10} {'TRL':>9}")
    for name, system in prompts.items():
        found[name] = compare(config, base, data, system, threads, options)
        print(row(name, found[name]))
    machine = this_machine()
    print(
        json.dumps(
            {
                "machine": machine.processor,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "threads": threads,
                "rounds": options.rounds,
                "versions": machine.versions | peer_versions(options.peer_python),
                **{name: summary(one) | asdict(one) for name, one in found.items()},
            }
        )
    )


def tool_prompt(config: Config, data: Data, tokens: int) -> str:
    """The system prompt with the tools' JSON behind it, cut to a number of tokens.

    Raises:
        UsageError: it has fewer.
    """
    listed = json.dumps(json.loads((data.folder / "tools.json").read_bytes()), ensure_ascii=False)
    ids = data.tokenizer.encode(f"{config.data.system}\n{listed}", add_special_tokens=False)
    if len(ids) < tokens:
        raise UsageError(f"prompt and tools have {len(ids)} tokens; give --tool-tokens at most that")
    return str(data.tokenizer.decode(ids[:tokens]))


def compare(
    config: Config,
    base: Path,
    data: Data,
    system: str,
    threads: int,
    options: argparse.Namespace,
) -> Found:
    """Both trainers on one prompt, in turn."""
    examples = data.examples(data.train, system)
    prefix = len(common_prefix([example.prompt for example in examples]))
    own = sum(len(example.prompt) - prefix + len(example.answer) for example in examples)
    length = round(own / len(examples) * options.batch)
    context = max(len(example.prompt) + len(example.answer) for example in examples)
    rows = pack(examples, length=length, context=context, seed=config.seed)
    batch = max(1, round(len(examples) / len(rows)))  # rows are seldom full
    settings = config.train.model_copy(
        update={
            "epochs": 1.0,
            "max_steps": None,
            "tokens_per_step": length,
            "gradient_accumulation": 1,
            # What SFTTrainer does not do is switched off in both.
            "loraplus_ratio": 1.0,
            "dropout": 0.0,
        }
    )
    ours_config = config.model_copy(
        update={"train": settings, "data": config.data.model_copy(update={"system": system})}
    )
    validation = data.examples(data.validation, system)
    judged = pack(
        validation,
        length=length,
        context=max(len(example.prompt) + len(example.answer) for example in validation),
        seed=config.seed,
    )
    ours: list[Run] = []
    peer: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for turn in range(options.rounds):
            # Back and forth, so that nobody always comes after the other.
            for trainer in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                out = scratch / f"{trainer}-{turn}"
                out.mkdir()
                label = f"{trainer} {turn + 1}/{options.rounds}"
                with StageDisplay(Console(stderr=True), label) as told:
                    if trainer == "ours":
                        speed = train_ours(ours_config, base, data, out, scratch, told)
                        ours.append(Run(speed, validation_loss(base, out, judged)))
                    else:
                        told("training with SFTTrainer", 0, 0)
                        speed = train_peer(
                            ours_config, base, examples, batch, threads, out, options.peer_python
                        )
                        peer.append(Run(speed, validation_loss(base, out, judged)))
    return Found(
        prefix_tokens=prefix,
        examples=len(examples),
        conversation_tokens=sum(len(example.prompt) + len(example.answer) for example in examples),
        fed_tokens=sum(len(row.input_ids) for row in rows),
        batch=batch,
        ours=tuple(ours),
        peer=tuple(peer),
    )


def train_ours(config: Config, base: Path, data: Data, out: Path, scratch: Path, told: StageDisplay) -> float:
    """Conversations per second of our training loop."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        write_records(data.train, folder / "train.jsonl")
        write_records(data.validation, folder / "validation.jsonl")
        (folder / "tools.json").write_bytes((data.folder / "tools.json").read_bytes())
        figures = train(config, base, folder, out, folder / "work", told)
    return float(str(figures["examples_per_second"]))


def train_peer(
    config: Config,
    base: Path,
    examples: Sequence[Example],
    batch: int,
    threads: int,
    out: Path,
    python: Path,
) -> float:
    """Conversations per second of SFTTrainer's loop, in a process of its own.

    Raises:
        StageError: it failed; its last line is the reason.
    """
    settings = config.train
    job = {
        "base": str(base.resolve()),
        "out": str(out),
        "examples": [
            {
                "input_ids": [*example.prompt, *example.answer],
                "labels": [*[IGNORED] * len(example.prompt), *example.answer],
            }
            for example in examples
        ],
        "batch": batch,
        "epochs": 1,
        "threads": threads,
        "seed": config.seed,
        "dtype": str(choose_precision(settings.dtype).dtype).removeprefix("torch."),
        "target_modules": list(settings.target_modules),
        **settings.model_dump(
            mode="json",
            include={
                "r",
                "alpha",
                "rslora",
                "learning_rate",
                "scheduler",
                "warmup_share",
                "adam_beta2",
                "weight_decay",
                "max_grad_norm",
            },
        ),
    }
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run(
        [str(python), str(PEER), str(out / "job.json")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise StageError(f"the peer failed: {last}")
    return len(examples) / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def validation_loss(base: Path, adapter: Path, rows: Sequence[Row]) -> float:
    """Nats per token of the answers, of base and adapter unmerged, float32, on CPU."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation=PACKED, local_files_only=True
        )
        return mean_loss(PeftModel.from_pretrained(model, str(adapter)), rows, "cpu")


def peer_versions(python: Path) -> dict[str, str]:
    """What the peer's interpreter has installed."""
    code = "import importlib.metadata as m; print('\\n'.join(map(m.version, ('trl', 'datasets'))))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(("trl", "datasets"), done.stdout.split(), strict=True))


def summary(found: Found) -> dict[str, float | bool]:
    """Medians over the rounds; ratios within a round."""
    ours, peer = (
        statistics.median(run.examples_per_second for run in runs) for runs in (found.ours, found.peer)
    )
    losses = [statistics.median(run.validation_loss for run in runs) for runs in (found.ours, found.peer)]
    tokens = found.conversation_tokens / found.examples
    return {
        "examples_per_second": ours,
        "examples_per_second_peer": peer,
        "tokens_per_second": ours * tokens,
        "tokens_per_second_peer": peer * tokens,
        "ratio": statistics.median(
            one.examples_per_second / other.examples_per_second
            for one, other in zip(found.ours, found.peer, strict=True)
        ),
        "validation_loss": losses[0],
        "validation_loss_peer": losses[1],
        "same_loss": abs(losses[0] - losses[1]) <= LIKE * max(losses),
    }


def row(name: str, found: Found) -> str:
    """One prompt, for people."""
    one = summary(found)
    mark = "" if one["same_loss"] else f"  more than {LIKE:.0%} apart"
    return (
        f"{name:8} {one['examples_per_second']:9.2f} {one['examples_per_second_peer']:9.2f}"
        f" {one['ratio']:6.2f}x {one['tokens_per_second']:9.0f} {one['tokens_per_second_peer']:9.0f} {'':7}"
        f" {one['validation_loss']:10.4f} {one['validation_loss_peer']:9.4f}{mark}"
    )


if __name__ == "__main__":
    main()
