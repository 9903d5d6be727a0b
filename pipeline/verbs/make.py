"""Verbs that make something: the whole build, and each stage alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from pipeline.ranks import join
from pipeline.verbs.options import Baseline, ConfigFile, Out, Overrides, Runs, System
from runtime.errors import UsageError

if TYPE_CHECKING:
    from pipeline.stages import Plan

verbs = typer.Typer()
console = Console()


@verbs.command(
    epilog="Example: cockpit build configs/smollm2-135m.toml --set export.precision=int4; of several tasks: "
    "cockpit build configs/smollm2-135m-tasks.toml"
)
def build(
    config: ConfigFile,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="Stop after this stage.")] = "bundle",
    rebuild: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Run this stage even if it can be reused.")
    ] = None,
    baseline: Baseline = None,
) -> None:
    """Run all stages, from base model to admitted bundle; unchanged stages are reused.

    A config with several tasks makes one bundle with an adapter for each task, or in mode = "merged"
    a bundle for each; exit code 4 when any task fails.
    """
    from pipeline.build import build as run_build
    from pipeline.config_file import load_config
    from pipeline.console import BuildDisplay
    from pipeline.task_build import build_tasks
    from runtime.report import read_report

    settings = load_config(config, tuple(overrides or ()))
    if settings.tasks:
        if baseline is not None:
            raise UsageError(
                "--baseline is the report of one task, and this config has several; leave it out"
            )
        with BuildDisplay(console) as display:
            display.summarize_tasks(
                build_tasks(settings, runs, display, until=until, rebuild=frozenset(rebuild or ()))
            )
        return
    last = None if baseline is None else read_report(baseline)
    with BuildDisplay(console) as display:
        built = run_build(
            settings, runs, display, until=until, rebuild=frozenset(rebuild or ()), baseline=last
        )
        display.summarize(built)


@verbs.command(epilog="Example: cockpit train configs/smollm2-135m.toml --out adapter")
def train(config: ConfigFile, out: Out, runs: Runs = Path("runs"), overrides: Overrides = None) -> None:
    """Base + data → a LoRA adapter in PEFT's format; base and data are made in --runs when missing.

    On several GPUs: accelerate launch $(which cockpit) train …
    """
    from pipeline import stages
    from pipeline.build import build as run_build
    from pipeline.config_file import load_config
    from pipeline.console import BuildDisplay

    settings = load_config(config, tuple(overrides or ()))
    with join() as team:
        if team.rank:
            raise typer.Exit(team.follow(settings))
        with BuildDisplay(console) as display:
            made = run_build(settings, runs, display, until="data").stages
        base, data = made["base"].artifact, made["data"].artifact
        _make(team.leading(stages.adapter(settings, base, data), base, data), out)


@verbs.command(epilog="Example: cockpit merge runs/smollm2-135m/base my-adapter --out merged")
def merge(
    base: Annotated[Path, typer.Argument(help="A local Hugging Face checkpoint.", show_default=False)],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=WEIGHT]...",
            help="PEFT adapter folders; several are added up, each times its weight, 1 unless given.",
            show_default=False,
        ),
    ],
    out: Out,
    onto: Annotated[
        Literal["base", "nf4"],
        typer.Option(help="Add to W0, or to W0 as NF4 rounds it, which QLoRA trains on."),
    ] = "base",
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most bytes of one file, as in 2GB; unset keeps the base's files."),
    ] = None,
) -> None:
    """Any local checkpoint + PEFT LoRA or AdaLoRA adapters → a standard Hugging Face checkpoint.

    A merge that was stopped goes on with the files that were whole when the same line is run again.
    """
    from pipeline import stages
    from pipeline.stage import artifact

    shard_bytes = None if shard_size is None else _bytes(shard_size)
    named = [_weighted_adapter(text) for text in adapters]
    checkpoint = artifact(base)
    given = [(artifact(path), weight) for path, weight in named]
    _make(stages.merged_together(checkpoint, given, onto, shard_bytes), out)


@verbs.command(epilog="Example: cockpit calibrate merged --data runs/smollm2-135m/data --out calibration")
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="A merged checkpoint.", show_default=False)],
    out: Out,
    data: Annotated[Path, typer.Option(help="A folder with train.jsonl and tools.json.", show_default=False)],
    conversations: Annotated[int, typer.Option(min=1, help="How many training conversations to run.")] = 32,
    system: System = None,
) -> None:
    """A checkpoint + training conversations → what `cockpit export --calibration` reads."""
    from pipeline import stages
    from pipeline.config import DEFAULT_SYSTEM
    from pipeline.stage import artifact

    training = {"data": artifact(data)}
    plan = stages.calibration(conversations, system or DEFAULT_SYSTEM, artifact(checkpoint), training)
    _make(plan, out)


@verbs.command(
    "round",
    epilog="Example: cockpit round merged --data runs/smollm2-135m/data --budget-kl 0.01 --out rounded",
)
def round_(
    checkpoint: Annotated[Path, typer.Argument(help="A merged checkpoint.", show_default=False)],
    out: Out,
    data: Annotated[Path, typer.Option(help="A folder with train.jsonl and tools.json.", show_default=False)],
    conversations: Annotated[
        int | None, typer.Option(min=1, help="How many training conversations to run; unset is 256.")
    ] = None,
    precision: Annotated[
        Literal["int8", "int4"], typer.Option(help="Of the weights; int8 has 8 bits alone to choose from.")
    ] = "int4",
    budget_bytes: Annotated[
        int | None,
        typer.Option(
            help="Most bytes of all matrices, with float32 scales; unset: as many as the plain form."
        ),
    ] = None,
    budget_kl: Annotated[
        float | None, typer.Option(help="Instead: most divergence; as few bytes are spent as that takes.")
    ] = None,
    system: System = None,
) -> None:
    """A checkpoint + training conversations → what `cockpit export --rounded` reads for int4 or int8."""
    from pipeline import stages
    from pipeline.config import DEFAULT_SYSTEM
    from pipeline.config_file import parse_export
    from pipeline.stage import artifact

    objective = {
        "minimize": "kl" if budget_kl is None else "bytes",
        "budget_bytes": budget_bytes,
        "budget_kl": budget_kl,
    }
    settings = parse_export(
        {"precision": precision, "calibration_conversations": conversations or 256, "objective": objective}
    )
    training = {"data": artifact(data)}
    _make(stages.rounding(settings, system or DEFAULT_SYSTEM, artifact(checkpoint), training), out)


@verbs.command(epilog="Example: cockpit export merged --precision int4 --out onnx")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A local Hugging Face checkpoint.", show_default=False)],
    out: Out,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4"], typer.Option(help="Of the weights.")
    ] = "int8",
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Most weights that share one scale: 16, 32, 64 or 128; unset is 32 for int8, 64 for int4."
        ),
    ] = None,
    context: Annotated[int, typer.Option(min=16, help="Longest prompt plus answer, in tokens.")] = 2048,
    exporter: Annotated[
        Literal["graph", "optimum"], typer.Option(help="optimum: for architectures graph does not know.")
    ] = "graph",
    calibration: Annotated[
        Path | None,
        typer.Option(help="What `cockpit calibrate` made; int8 then reads prompts about 1.3 times as fast."),
    ] = None,
    rounded: Annotated[
        Path | None,
        typer.Option(
            help="What `cockpit round` made for this precision; the export then is closer to the checkpoint."
        ),
    ] = None,
    kv_cache: Annotated[
        Literal["float", "int8"],
        typer.Option(help="int8: a quarter of the cache's memory, slower prompts; needs --calibration."),
    ] = "float",
) -> None:
    """A checkpoint → ONNX model, tokenizer and genai_config.json."""
    from pipeline import stages
    from pipeline.config_file import parse_export
    from pipeline.stage import artifact

    settings = parse_export(
        {
            "precision": precision,
            "block_size": block_size,
            "context": context,
            "exporter": exporter,
            "kv_cache": kv_cache,
        }
    )
    if calibration is not None and not settings.calibrated:
        raise UsageError(
            "--calibration is for --precision int8 or --kv-cache int8, and --exporter graph; leave it out"
        )
    if rounded is not None and (precision not in ("int8", "int4") or exporter != "graph"):
        raise UsageError("--rounded is for --precision int8 or int4 and --exporter graph; leave it out")
    if rounded is not None and calibration is not None and precision == "int8" and kv_cache == "float":
        raise UsageError(
            "int8 either rounds gate and up as a whole, with --calibration, or takes what --rounded has: "
            "leave one of them out"
        )
    given = {"calibration": calibration, "rounding": rounded}
    measured = {stage: artifact(path) for stage, path in given.items() if path is not None}
    _make(stages.onnx(settings, artifact(checkpoint), measured), out)


@verbs.command(
    epilog="Example: cockpit package onnx --tools configs/cockpit-tools.json --out candidate\n\n"
    "Or: cockpit package --adapter-for bundle --adapter adapter --base base --task media --out media-2"
)
def package(
    out: Out,
    onnx: Annotated[
        Path | None, typer.Argument(help="What `cockpit export` made.", show_default=False)
    ] = None,
    tools: Annotated[
        Path | None, typer.Option(help="JSON Schema of the callable functions.", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "candidate",
    system: System = None,
    adapter_for: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Make an update of this bundle instead: one more adapter."),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder, for the update.")] = None,
    base: Annotated[Path | None, typer.Option(help="The checkpoint that it was trained on.")] = None,
    task: Annotated[str | None, typer.Option(help="The task that it is for.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How the update stores the factors.")
    ] = "float32",
    replaces: Annotated[
        bool, typer.Option("--replaces", help="The update takes the place of the task's adapter.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="What `cockpit validate` made of a copy of BUNDLE with the adapter installed."
        ),
    ] = None,
) -> None:
    """ONNX + tools → a candidate bundle, which `cockpit validate` measures and judges.

    With --adapter-for, an adapter → an update of that bundle, which `python -m runtime install` puts into it.
    """
    from pipeline.stage import artifact

    if adapter_for is not None:
        if adapter is None or base is None or task is None or onnx is not None or tools is not None:
            raise UsageError("--adapter-for needs --adapter, --base and --task, and neither ONNX nor --tools")
        from pipeline import delta

        measured = None if report is None else artifact(report / "report")
        made = delta.Made(artifact(adapter_for), artifact(adapter), artifact(base), measured)
        _make(delta.delta(made, task, replaces, dtype), out)
        return
    if onnx is None or tools is None:
        raise UsageError("give what `cockpit export` made and --tools, or --adapter-for; --help has examples")
    if adapter or base or task or report or replaces:
        raise UsageError("--adapter, --base, --task, --replaces and --report go with --adapter-for")
    from pipeline import stages
    from pipeline.config import DEFAULT_SYSTEM

    label = stages.Label(name, system or DEFAULT_SYSTEM, {}, None)
    _make(stages.candidate(label, artifact(onnx), artifact(tools)), out)


def _weighted_adapter(text: str) -> tuple[Path, float]:
    """`ADAPTER` or `ADAPTER=WEIGHT`; a folder may have an equals sign in its name."""
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not path or not math.isfinite(weight) or weight == 0.0:
        raise UsageError(f'"{number}" in "{text}" is no weight; write ADAPTER=WEIGHT with a number but 0')
    return Path(path), weight


def _bytes(text: str) -> int:
    """`2GB`, `500MB`, `64KB` as bytes, decimal."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in units or not number.isdecimal() or int(number) == 0:
        raise UsageError(f'--shard-size takes a whole number of KB, MB or GB, as in 2GB, not "{text}"')
    return int(number) * units[unit]


def _make(plan: Plan, out: Path) -> None:
    """Run one stage into a new directory of the caller's choice."""
    from pipeline.console import StageDisplay
    from pipeline.stage import write_stage

    with StageDisplay(console, plan.stage.name) as told:
        result = write_stage(plan.stage, out, lambda folder, scratch: plan.work(folder, scratch, told))
    console.print(f"{plan.stage.name}: {out} ({result.seconds:.1f} s)", highlight=False)
