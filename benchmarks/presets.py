"""What int8 and int4 do to a task: exact calls of bundles beside the unmerged model, utterance by utterance.

    cockpit calibrate RUN/merged --data RUN/data --out calibration
    cockpit export RUN/merged --precision int8 --calibration calibration --out int8
    cockpit package int8 --tools RUN/data/tools.json --out bundle-int8
    cockpit round RUN/merged --data RUN/data --out rounded
    cockpit export RUN/merged --precision int4 --rounded rounded --out int4
    cockpit package int4 --tools RUN/data/tools.json --out bundle-int4
    python benchmarks/presets.py RUN --bundle int8=bundle-int8 --bundle int4=bundle-int4

RUN has base/, adapter/ and data/, as a build leaves them. The unmerged model answers in torch, in float32,
greedy and without a grammar; bundles as a car asks them. Prints a table for people, then one JSON line for
machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from task_answers import Paired, Test, interval, paired, percent

from pipeline.config import Validate
from pipeline.console import StageDisplay
from pipeline.evidence.task import BUNDLE, UNMERGED, Reply, task_report
from pipeline.merging.qlora import trained_beside
from pipeline.stage import Progress
from runtime.errors import CockpitError
from runtime.report import Score


def main() -> None:
    """Ask everybody."""
    options = _options()
    bundles = dict(options.bundle)
    try:
        settings = Validate(threads=options.threads)
        test = Test(options.run, next(iter(bundles.values())), settings, options.utterances, 0)
        with StageDisplay(Console(stderr=True), options.run.name) as told:
            replies = {UNMERGED: _unmerged(options.run, test, told)}
            replies |= {name: test.bundle(bundle, told) for name, bundle in bundles.items()}
    except CockpitError as error:
        sys.exit(f"presets.py: {error}")
    # A report has one bundle, the one to be judged; here none is.
    report = task_report(test.questions, {**replies, BUNDLE: next(reversed(replies.values()))})
    scores = {one.name: one.overall for one in report.contenders if one.name in replies}
    against = paired(test.questions, replies)
    print(f"{options.run.name}: {len(test.questions)} utterances; %, points, and their 95 % intervals")
    print(_table(scores, against))
    found = {
        "scores": {name: asdict(score) for name, score in scores.items()},
        "against_unmerged": {name: asdict(it) for name, it in against.items()},
    }
    print(json.dumps({"run": options.run.name, "utterances": len(test.questions), **found}))


def _unmerged(run: Path, test: Test, told: Progress) -> list[Reply]:
    """Replies of the adapter beside the weights that it was trained on."""
    with tempfile.TemporaryDirectory() as scratch:
        beside = trained_beside(run / "base", run / "adapter", Path(scratch), told)
        return test.torch(beside, run / "adapter", UNMERGED, told)


def _table(scores: Mapping[str, Score], against: Mapping[str, Paired]) -> str:
    """`+` and `-`: utterances that one of the two alone has right."""
    rows = [
        f"{'':12} {'exact call':>20} {'name':>6} {'arg. F1':>8} {'less unmerged':>22}"
        f" {'+':>4} {'-':>4} {'p':>6}"
    ]
    for name, score in scores.items():
        row = (
            f"{name:12} {interval(score.exact_call):>20} {percent(score.function_name):>6}"
            f" {percent(score.argument_f1):>8}"
        )
        if name in against:
            it = against[name]
            row += f" {interval(it.gain, '+'):>22} {it.better:4} {it.worse:4} {it.p:6.2g}"
        rows.append(row)
    return "\n".join(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a folder with base/, adapter/ and data/")
    parser.add_argument("--bundle", action="append", required=True, type=_named, metavar="NAME=BUNDLE")
    parser.add_argument("--utterances", type=int, help="ask so many, drawn at random, instead of all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.utterances is not None and options.utterances < 1:
        parser.error("--utterances must be 1 or more")
    return options


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path) or name in (UNMERGED, BUNDLE):
        raise argparse.ArgumentTypeError(f'a bundle is NAME=PATH, and not named "{UNMERGED}" or "{BUNDLE}"')
    return name, Path(path)


if __name__ == "__main__":
    main()
