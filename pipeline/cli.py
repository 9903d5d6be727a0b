"""The `cockpit` command line: what all verbs have in common, and exit codes; nothing else.

Heavy libraries are imported by the verb that needs them, so that `--help` and a refused config answer
at once.
"""

from __future__ import annotations

import sys

import typer

from pipeline.ranks import rank, refuse_several
from pipeline.verbs import ask, judge, make, study
from pipeline.verbs.options import Debug
from runtime.errors import CockpitError

app = typer.Typer(
    name="cockpit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
for group in (make, judge, ask, study):
    app.add_typer(group.verbs)


@app.callback()
def options(context: typer.Context, debug: Debug = False) -> None:
    """From a base model and in-car utterances to a proven bundle that a car can run.

    Exit codes: 0 passed, 1 internal error, 2 usage or config, 3 a stage failed, 4 a gate failed,
    5 a bundle was refused.
    """
    if context.invoked_subcommand not in (None, "train"):
        refuse_several(context.invoked_subcommand)


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
