"""Verbs that try a bundle out."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from pipeline.verbs.options import BundleFolder, Cache, Deadline, Json, TaskOfBundle, Threads
from runtime.errors import PromptError, StoppedError

verbs = typer.Typer()
console = Console()


@verbs.command(epilog='Example: cockpit run runs/smollm2-135m/bundle "set the driver side to 22 degrees"')
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


@verbs.command(epilog="Example: cockpit chat runs/smollm2-135m/bundle")
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


@verbs.command(epilog="Example: cockpit bench runs/smollm2-135m/bundle --json")
def bench(bundle: BundleFolder, as_json: Json = False, threads: Threads = 2, cache: Cache = None) -> None:
    """Time to first token, time per token, load time and peak memory of a bundle."""
    from runtime.__main__ import main as run_on_device

    arguments = [str(bundle), "--bench", "--threads", str(threads), *(["--json"] if as_json else [])]
    arguments += [] if cache is None else ["--cache", str(cache)]
    raise typer.Exit(run_on_device(arguments))
