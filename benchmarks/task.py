"""What a fine-tune is worth on collected in-car sets: base, LoRA's variants, full fine-tuning, bundles.

    export COCKPIT_DATA_DIR=...
    python benchmarks/task.py configs/ms-automotive.toml configs/mac-slu.toml

For each config every method trains on the same rows of the training file, and answers the test file's
utterances: unmerged in torch, greedy and without a grammar; plain LoRA also as int8 and int4 bundles, with
one. Trainings go through the build's store, so that a second run trains nothing anew but full fine-tuning.
Prints a table for people, then one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from task_answers import Paired, Test, interval, paired, percent
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.build import Built, build
from pipeline.claims.trainee import Way, trainee
from pipeline.config import Config
from pipeline.config_file import load_config
from pipeline.console import BuildDisplay, StageDisplay
from pipeline.data.packing import pack
from pipeline.data.records import read_records
from pipeline.data.render import Example, render
from pipeline.evidence.answers import BASE
from pipeline.evidence.latency import this_machine
from pipeline.evidence.task import BUNDLE, UNMERGED, Reply, task_report
from pipeline.merging.qlora import trained_beside
from pipeline.stage import Progress
from runtime.calls import load_tools
from runtime.errors import CockpitError, UsageError
from runtime.report import ContenderScore, Score

FULL, INT4 = "full", "int4"
METHODS = ("lora", "dora", "adalora", "qlora", FULL)
FULL_RATE = 0.1
"""Learning rate of full fine-tuning over LoRA's: each at its best by decades in docs/claims.md."""


@dataclass(frozen=True)
class Line:
    """One contender.

    Attributes:
        contender: its figures.
        against_lora: the same beside plain LoRA unmerged; None for that itself.
        minutes: its training took; None where it has none of its own, or none in this run.
    """

    contender: ContenderScore
    against_lora: Paired | None
    minutes: float | None


def main() -> None:
    """Train and ask for every config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are, or are made")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}; lora is always among them"
    )
    parser.add_argument("--utterances", type=int, help="ask so many, drawn at random, instead of all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as cockpit build's")
    options = parser.parse_args()
    methods = options.methods.split(",")
    try:
        if unknown := [method for method in methods if method not in METHODS]:
            raise UsageError(f'unknown method "{unknown[0]}"; known: {", ".join(METHODS)}')
        if options.utterances is not None and options.utterances < 1:
            raise UsageError("--utterances must be 1 or more")
        found = {}
        for path in options.configs:
            config = load_config(path, tuple(options.set))
            found[config.name] = compare(config, methods, options.utterances, options.runs)
            print_table(config.name, found[config.name])
    except CockpitError as error:
        sys.exit(f"task.py: {error}")
    machine = this_machine()
    print(
        json.dumps(
            {
                "machine": machine.processor,
                "versions": machine.versions,
                **{name: [asdict(line) for line in lines] for name, lines in found.items()},
            },
            ensure_ascii=False,
        )
    )


def compare(config: Config, methods: Sequence[str], utterances: int | None, runs: Path) -> list[Line]:
    """Every contender's figures on the same utterances."""
    minutes: dict[str, float] = {}
    shipped = made(config, runs, "candidate")
    minutes[UNMERGED] = trained_minutes(shipped)
    small = config.export.model_copy(update={"precision": INT4, "block_size": None})
    int4 = made(
        config.model_copy(update={"name": f"{config.name}-{INT4}", "export": small}), runs, "candidate"
    )
    test = Test(shipped.run, shipped.run / "candidate", config.validate_, utterances, config.seed)
    base, adapter = shipped.run / "base", shipped.run / "adapter"
    replies: dict[str, list[Reply]] = {}
    with StageDisplay(Console(stderr=True), config.name) as told:
        replies[BASE] = test.torch(base, adapter, BASE, told, bare=True)
        replies[UNMERGED] = test.torch(base, adapter, UNMERGED, told)
    for method in methods:
        if method == FULL:
            replies[FULL], minutes[FULL] = full(config, shipped, test)
        elif method != "lora":
            replies[method], minutes[method] = variant(config, method, runs, test)
    with StageDisplay(Console(stderr=True), config.name) as told:
        replies[BUNDLE] = test.bundle(shipped.run / "candidate", told)
        replies[INT4] = test.bundle(int4.run / "candidate", told)
    contenders = task_report(test.questions, replies).contenders
    against = paired(test.questions, replies)
    return [
        Line(contender, against.get(contender.name), minutes.get(contender.name)) for contender in contenders
    ]


def variant(config: Config, method: str, runs: Path, test: Test) -> tuple[list[Reply], float]:
    """Replies of another method of the family, trained by the same recipe, and the minutes that took."""
    train = config.train.model_copy(update={"method": method})
    built = made(
        config.model_copy(update={"name": f"{config.name}-{method}", "train": train}), runs, "adapter"
    )
    adapter = built.run / "adapter"
    with tempfile.TemporaryDirectory(dir=runs) as name, StageDisplay(Console(stderr=True), method) as told:
        beside = trained_beside(built.run / "base", adapter, Path(name), told)
        return test.torch(beside, adapter, method, told), trained_minutes(built)


def full(config: Config, built: Built, test: Test) -> tuple[list[Reply], float]:
    """Replies after full fine-tuning on the rows that LoRA trains on, and the minutes that took."""
    with tempfile.TemporaryDirectory(dir=built.run) as name, StageDisplay(Console(stderr=True), FULL) as told:
        minutes = train_full(config, built, Path(name), told)
        return test.torch(Path(name), None, FULL, told), minutes


def made(config: Config, runs: Path, until: str) -> Built:
    """The build's stages up to one of them."""
    with BuildDisplay(Console(stderr=True)) as display:
        return build(config, runs, display, until=until)


def trained_minutes(built: Built) -> float:
    """How long the training took, when it was made."""
    return built.stages["adapter"].seconds / 60


def train_full(config: Config, built: Built, out: Path, told: Progress) -> float:
    """Full fine-tuning on the rows that LoRA trains on; the checkpoint goes to `out`. Minutes."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        built.run / "base", local_files_only=True
    )
    tools = load_tools(built.run / "data" / "tools.json")
    examples: list[Example] = [
        render(record, tokenizer, tools, config.data.system)
        for record in read_records(built.run / "data" / "train.jsonl")
    ]
    settings = config.train
    rows = pack(
        examples,
        length=settings.tokens_per_step,
        context=max(len(example.prompt) + len(example.answer) for example in examples),
        seed=config.seed,
    )
    steps = settings.max_steps or math.ceil(len(rows) * settings.epochs)
    warmup = int(steps * settings.warmup_share)
    way = Way(
        base=str(built.run / "base"),
        lora=None,
        adam_beta2=settings.adam_beta2,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        dtype=settings.dtype,
        threads=settings.threads or os.cpu_count() or 1,
    )
    started = time.monotonic()
    with trainee(way) as model:
        for step in range(steps):
            share = (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)
            model.step(rows[step % len(rows)], settings.learning_rate * FULL_RATE * share)
            told("full fine-tuning", step + 1, steps)
        model.save(out)
    tokenizer.save_pretrained(out)
    return (time.monotonic() - started) / 60


def print_table(name: str, lines: Sequence[Line]) -> None:
    """Figures of one config, for people: shares in %, the exact call with its 95 % interval.

    The difference from plain LoRA unmerged is of pairs, in points.
    """
    asked = lines[0].contender.overall.utterances
    print(f"\n{name}: {asked} utterances")
    print(
        f"{'':10} {'exact call':>20} {'less lora':>22} {'name':>7} {'arg. F1':>8} {'refusal':>8}"
        f" {'valid':>7} {'training':>10}"
    )
    for line in lines:
        score: Score = line.contender.overall
        spent = "" if line.minutes is None else f"{line.minutes:.1f} min"
        print(
            f"{LABELS.get(line.contender.name, line.contender.name):10} {interval(score.exact_call):>20} "
            f"{interval(line.against_lora.gain, '+') if line.against_lora else '':>22} "
            f"{percent(score.function_name):>7} {percent(score.argument_f1):>8} {percent(score.refusal):>8} "
            f"{percent(score.valid):>7} {spent:>10}"
        )


LABELS: Mapping[str, str] = {UNMERGED: "lora", BUNDLE: "int8", INT4: "int4"}


if __name__ == "__main__":
    main()
