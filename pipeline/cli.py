"""The `cockpit` command line: verbs, progress, exit codes; nothing else.

Heavy libraries are imported by the verb that needs them, so that `--help` and a refused config answer
at once.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from pipeline.ranks import join, rank, refuse_several
from runtime.errors import CockpitError, ConfigError, PromptError, StoppedError, UsageError

if TYPE_CHECKING:
    from pipeline.stages import Plan

app = typer.Typer(
    name="cockpit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
console = Console()

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML config; configs/ has some.", show_default=False)
]
System = Annotated[
    str | None,
    typer.Option(help="System prompt that the model was trained with; unset takes the default."),
]
BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Such as runs/smollm2-135m/bundle.", show_default=False)
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The directory to make; it must not exist yet.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where stages and runs are kept.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config value, as in train.r=32; repeatable."),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="REPORT", help="report.json of the last release, to be judged against as well."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of the model.")]
TaskOfBundle = Annotated[
    str | None, typer.Option("--task", help="Of a switchable bundle; unset asks its bare base.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="A directory of yours where what makes the next load faster is kept.",
        show_default=False,
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline", metavar="SECONDS", help="Stop an answer that takes longer.", show_default=False
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def options(context: typer.Context, debug: Debug = False) -> None:
    """From a base model and in-car utterances to a proven bundle that a car can run.

    Exit codes: 0 passed, 1 internal error, 2 usage or config, 3 a stage failed, 4 a gate failed,
    5 a bundle was refused.
    """
    if context.invoked_subcommand not in (None, "train"):
        refuse_several(context.invoked_subcommand)


@app.command(
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


@app.command(epilog="Example: cockpit train configs/smollm2-135m.toml --out adapter")
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


@app.command(epilog="Example: cockpit merge runs/smollm2-135m/base my-adapter --out merged")
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


@app.command(epilog="Example: cockpit calibrate merged --data runs/smollm2-135m/data --out calibration")
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


@app.command(
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
    budget_bytes: Annotated[
        int | None, typer.Option(help="Most bytes of all matrices; unset: as many as plain int4 takes.")
    ] = None,
    budget_kl: Annotated[
        float | None, typer.Option(help="Instead: most divergence; as few bytes are spent as that takes.")
    ] = None,
    system: System = None,
) -> None:
    """A checkpoint + training conversations → what `cockpit export --rounded` reads for int4."""
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
        {"precision": "int4", "calibration_conversations": conversations, "objective": objective}
    )
    training = {"data": artifact(data)}
    _make(stages.rounding(settings, system or DEFAULT_SYSTEM, artifact(checkpoint), training), out)


@app.command(epilog="Example: cockpit export merged --precision int4 --out onnx")
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
            help="What `cockpit round` made; int4 then is several times as close to the checkpoint."
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
    if rounded is not None and not settings.rounded:
        raise UsageError("--rounded is for --precision int4 and --exporter graph; leave it out")
    given = {"calibration": calibration, "rounding": rounded}
    measured = {stage: artifact(path) for stage, path in given.items() if path is not None}
    _make(stages.onnx(settings, artifact(checkpoint), measured), out)


@app.command(
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


@app.command(
    epilog="Example: cockpit validate candidate --base base --adapter adapter --data test.jsonl --out verdict"
)
def validate(
    bundle: BundleFolder,
    base: Annotated[Path, typer.Option(help="The base checkpoint.", show_default=False)],
    adapter: Annotated[Path, typer.Option(help="The adapter that was merged into it.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Test records, JSON Lines.", show_default=False)],
    out: Out,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that was exported, so that a bad merge is told from a bad export; "
            "unset merges again."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Of a switchable bundle, the task that the adapter is for.", show_default=False),
    ] = None,
    baseline: Baseline = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=BUNDLE", help="Another bundle to time in the same rounds; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help=r"Take \[validate] and \[gate] from this config; unset takes the defaults."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure a bundle against the unmerged model and judge it; exit code 4 when a gate fails."""
    from pipeline.config_file import load_validation
    from pipeline.console import BuildDisplay, StageDisplay
    from pipeline.evidence.admission import refuse_unless_passed
    from pipeline.evidence.validate import validate as run_validate
    from pipeline.stage import artifact
    from pipeline.stages import Origin
    from runtime.report import read_report

    validation, gate = load_validation(config, tuple(overrides or ()))
    with StageDisplay(console, "evidence") as told:
        found = run_validate(
            validation,
            gate,
            bundle=artifact(bundle),
            origin=Origin(artifact(base), artifact(adapter), None if merged is None else artifact(merged)),
            data=artifact(data),
            out=out,
            progress=told,
            others={name: artifact(path) for name, path in _named_bundles(beside or []).items()},
            baseline=None if baseline is None else read_report(baseline),
            task=task,
        )
    with BuildDisplay(console) as display:
        display.judged(found, out / "report")
    refuse_unless_passed(found.gate, out / "report")


@app.command(epilog='Example: cockpit run runs/smollm2-135m/bundle "set the driver side to 22 degrees"')
def run(
    bundle: BundleFolder,
    utterance: Annotated[str, typer.Argument(help="What the driver says.", show_default=False)],
    task: TaskOfBundle = None,
    as_json: Json = False,
    threads: Threads = 2,
    cache: Cache = None,
    deadline: Deadline = None,
) -> None:
    """One utterance → function calls, with timing; exit code 1 when the deadline passes."""
    from runtime.__main__ import main as run_on_device

    given = {"--task": task, "--cache": cache, "--deadline": deadline}
    arguments = ["--threads", str(threads), *(["--json"] if as_json else [])]
    arguments += [f"{option}={value}" for option, value in given.items() if value is not None]
    # Behind "--", so that what is said may begin with a dash.
    raise typer.Exit(run_on_device([*arguments, "--", str(bundle), utterance]))


@app.command(epilog="Example: cockpit chat runs/smollm2-135m/bundle")
def chat(
    bundle: BundleFolder,
    task: TaskOfBundle = None,
    threads: Threads = 2,
    cache: Cache = None,
    deadline: Deadline = None,
) -> None:
    """Talk to a bundle; text appears as it is made. An empty line or Ctrl-D ends."""
    import runtime

    assistant = runtime.load(bundle, threads=threads, cache=cache)
    assistant.use(task)
    while True:
        try:
            utterance = console.input("[bold]>[/bold] ").strip()
        except EOFError:
            return
        if not utterance:
            return
        try:
            for piece in assistant.generate(assistant.messages(utterance), deadline_s=deadline):
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            console.print()
        except StoppedError as error:
            console.print()  # behind the pieces that are there
            console.print(str(error), markup=False)
        except PromptError as error:
            console.print(str(error), markup=False)


@app.command(epilog="Example: cockpit bench runs/smollm2-135m/bundle --json")
def bench(bundle: BundleFolder, as_json: Json = False, threads: Threads = 2, cache: Cache = None) -> None:
    """Time to first token, time per token, load time and peak memory of a bundle."""
    from runtime.__main__ import main as run_on_device

    arguments = [str(bundle), "--bench", "--threads", str(threads), *(["--json"] if as_json else [])]
    arguments += [] if cache is None else ["--cache", str(cache)]
    raise typer.Exit(run_on_device(arguments))


@app.command(epilog="Example: cockpit report runs/smollm2-135m")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="Of a run with several tasks, the one.")] = None,
    as_json: Json = False,
) -> None:
    """Draw report.html and junit.xml again from a run's report.json, and show the verdict."""
    from pipeline.console import BuildDisplay
    from pipeline.evidence.admission import write_report
    from runtime.report import read_report, to_json

    folder = run / "report" if task is None else run / "report" / task
    found = read_report(folder / "report.json")
    write_report(found, folder)
    if as_json:
        sys.stdout.write(to_json(found.gate))
        return
    with BuildDisplay(console) as display:
        display.judged(found, folder)


@app.command(epilog="Example: cockpit claims configs/smollm2-135m.toml --out docs/claims.md")
def claims(
    config: ConfigFile,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write them as a Markdown page, too.")
    ] = None,
) -> None:
    """What the reference guide says of LoRA, beside what is found on a run that was built."""
    from pipeline.claims.folders import folders
    from pipeline.config_file import load_config

    settings = load_config(config, tuple(overrides or ()))
    built = folders(runs / settings.name, config)
    # Heavy: a run that is not there has been refused by now.
    from pipeline.claims.record import record
    from pipeline.claims.terminal import claims_table
    from pipeline.console import StageDisplay
    from runtime.report import to_json

    with StageDisplay(Console(stderr=True) if as_json else console, "claims") as told:
        found, written = record(settings, built, runs / "store", out, told)
    if as_json:
        sys.stdout.write(to_json(found))
        return
    console.print(claims_table(found))
    console.print(f"claims: {written}", highlight=False)


@app.command(epilog="Example: cockpit advise configs/smollm2-135m-tasks.toml --out advice.md")
def advise(
    config: ConfigFile,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it as a Markdown page, too.")
    ] = None,
) -> None:
    """What the tasks of a config cost merged and switchable, measured here before anything is trained."""
    from pipeline.config_file import load_config

    settings = load_config(config, tuple(overrides or ()))
    if not settings.tasks:
        raise ConfigError(
            f"{config} has no tasks to compare the forms for; add a table for each, and one is enough:\n\n"
            '[[task]]\nname = "navigation"\nfunctions = ["nav_*"]'
        )
    if settings.mode == "merged":  # what cannot be switched is refused as a switchable build refuses it
        settings = load_config(config, (*(overrides or ()), 'mode="switchable"'))
    # Heavy: a config that cannot be compared has been refused by now.
    from pipeline.advise.advice import FILE
    from pipeline.advise.page import table
    from pipeline.advise.record import record
    from pipeline.advise.text import UNMEASURED, reasons
    from pipeline.console import StageDisplay
    from runtime.report import to_json

    with StageDisplay(Console(stderr=True) if as_json else console, "advise") as told:
        found = record(settings, runs, out, told)
    if as_json:
        sys.stdout.write(to_json(found))
        return
    console.print(table(found))
    for line in (*reasons(found, "en"), UNMEASURED["en"]):
        console.print(line, highlight=False, markup=False)
    console.print(f"advice: {runs / settings.name / FILE}", highlight=False)


@app.command(epilog="Example: cockpit doctor --json")
def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """What this machine can do, what is missing and how to get it."""
    from pipeline.console import doctor_table
    from pipeline.doctor import examine, healthy

    findings = examine(runs)
    if as_json:
        sys.stdout.write(
            json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1) + "\n"
        )
    else:
        console.print(doctor_table(findings))
    if not healthy(findings):
        raise typer.Exit(3)


def _named_bundles(beside: list[str]) -> dict[str, Path]:
    """`NAME=BUNDLE` options as names and folders."""
    found: dict[str, Path] = {}
    for text in beside:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in {"unmerged", "merged", "bundle", *found}:
            raise UsageError(f'--beside takes NAME=BUNDLE with a name of its own, not "{text}"')
        found[name] = Path(folder)
    return found


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


def main() -> None:
    """The console script: an expected error is one sentence on stderr and its class's exit code."""
    debug = "--debug" in sys.argv
    # Accepted anywhere on the line: a person adds it at the end, after the error.
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except CockpitError as error:
        if debug:
            raise
        if rank() == 0:  # the others read the same config, and would say the same
            sys.stderr.write(f"cockpit: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("cockpit: interrupted; finished stages are kept\n")
        sys.exit(130)
    except Exception as error:  # the last resort of a command line
        if debug:
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.stderr.write(f"cockpit: internal error: {first} ({type(error).__name__}); --debug shows where\n")
        sys.exit(CockpitError.exit_code)
