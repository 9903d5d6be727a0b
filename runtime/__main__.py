"""`python -m runtime BUNDLE "utterance"`: what a device does with a bundle, from a shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import CockpitError, UsageError

if TYPE_CHECKING:
    from runtime.manifest import Manifest

EXAMPLES = """\
examples:
  python -m runtime bundle/ "set the driver side to 22 degrees"
  python -m runtime bundle/ "打开左后车窗" --json
  python -m runtime bundle/ "take me home" --task navigation
  python -m runtime bundle/ --verify
  python -m runtime bundle/ --bench --prompt-tokens 256 --new-tokens 64
  python -m runtime install bundle/ navigation-2/
  python -m runtime install bundle/ --remove navigation

exit codes:
  0 done   1 internal error, or the deadline passed   2 wrong usage, or an answer that is no valid call
  5 the bundle is refused
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    install = given[:1] == ["install"]
    options = _install_parser().parse_args(given[1:]) if install else _parser().parse_args(given)
    try:
        (_install if install else _run)(options)
    except CockpitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="Verify a bundle and turn an utterance into vehicle function calls.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    parser.add_argument("utterance", nargs="?", help="what somebody said")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--threads", type=int, default=2, help="threads of one operator (default 2)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where the model runs")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="a directory of yours where what makes the next load faster is kept",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    parser.add_argument(
        "--unconstrained", action="store_true", help="let the model say anything; an invalid call is an error"
    )
    parser.add_argument("--task", help="answer with this task's adapter, in a bundle that has several")
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="stop an answer that takes longer; exit code 1"
    )
    parser.add_argument("--verify", action="store_true", help="check every file's digest and stop")
    parser.add_argument("--bench", action="store_true", help="measure load, first token, tokens, memory")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="for --bench (default 256)")
    parser.add_argument("--new-tokens", type=int, default=64, help="for --bench (default 64)")
    parser.add_argument("--runs", type=int, default=5, help="for --bench (default 5)")
    return parser


def _install_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime install",
        description="Put an adapter into a bundle in one step, or take one out.",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    parser.add_argument("delta", nargs="?", type=Path, help="what `cockpit package --adapter-for` made")
    parser.add_argument("--remove", metavar="TASK", help="take this task's adapter out")
    parser.add_argument("--recover", action="store_true", help="put right what a killed install left")
    parser.add_argument(
        "--unproven", action="store_true", help="install an adapter without evidence of its own"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _install(options: argparse.Namespace) -> None:
    if sum((options.delta is not None, options.remove is not None, options.recover)) != 1:
        raise UsageError("give an update, or --remove TASK, or --recover; --help says more")
    from runtime.update import install, recover, uninstall

    if options.recover:
        manifest = recover(options.bundle)
    elif options.remove is not None:
        manifest = uninstall(options.bundle, options.remove)
    else:
        manifest = install(options.bundle, options.delta, unproven=options.unproven)
    _print_summary(manifest, options.json)


def _run(options: argparse.Namespace) -> None:
    if sum((options.utterance is not None, options.verify, options.bench)) != 1:
        raise UsageError("give an utterance, or --verify, or --bench; --help has examples")
    if options.verify:
        _verify(options)
    elif options.bench:
        _bench(options)
    else:
        _call(options)


def _verify(options: argparse.Namespace) -> None:
    from runtime.manifest import verify

    _print_summary(verify(options.bundle), options.json)


def _print_summary(manifest: Manifest, as_json: bool) -> None:
    entries = manifest.adapters or ()
    summary: dict[str, Any] = {
        "name": manifest.name,
        "precision": manifest.precision,
        "admitted": manifest.gate is not None,
        "tasks": [entry.name for entry in entries],
        "unproven": [entry.name for entry in entries if entry.proof == "none"],
        "files": len(manifest.files),
        "bytes": sum(file.size for file in manifest.files.values()),
    }
    if as_json:
        _print_json(summary)
        return
    state = "admitted" if summary["admitted"] else "a candidate, not admitted by a gate"
    told = {"bundle": "", "own": " (proved on its own)", "none": " (unproven)"}
    named = ", ".join(f"{entry.name}{told[entry.proof]}" for entry in entries) or "none yet"
    tasks = f"; tasks: {named}" if manifest.adapters is not None else ""
    print(f"{manifest.name} ({manifest.precision}) is intact: {len(manifest.files)} files; {state}{tasks}")


def _bench(options: argparse.Namespace) -> None:
    from runtime.bench import bench

    result = bench(
        options.bundle,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        runs=options.runs,
        threads=options.threads,
        provider=options.provider,
        cache=options.cache,
    )
    if options.json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"{result.name} ({result.precision}), {result.provider}, {result.threads} threads")
    print(f"load            {result.load_ms:9.1f} ms")
    print(f"peak memory     {result.peak_bytes / 1e6:9.1f} MB")
    print(f"{'':15} {'p50':>9} {'p95':>9} {'p99':>9}")
    for label, times in (("first token, ms", result.ttft), ("each token, ms", result.token)):
        print(f"{label:15} {times.p50:9.2f} {times.p95:9.2f} {times.p99:9.2f}")
    print(f"prefill         {result.prefill_tokens_per_second:9.0f} tokens/s")
    print(f"decode          {result.decode_tokens_per_second:9.0f} tokens/s")


def _call(options: argparse.Namespace) -> None:
    from runtime.assistant import load

    assistant = load(options.bundle, threads=options.threads, provider=options.provider, cache=options.cache)
    assistant.use(options.task)
    result = assistant.call(
        options.utterance,
        options.max_new_tokens,
        constrained=not options.unconstrained,
        deadline_s=options.deadline,
    )
    if options.json:
        _print_json(dataclasses.asdict(result))
        return
    for call in result.calls:
        arguments = ", ".join(f"{name}={_literal(value)}" for name, value in call.arguments.items())
        print(f"{call.name}({arguments})")
    if not result.calls:
        print("no function fits")
    timing = result.timing
    print(
        f"{timing.prompt_tokens} prompt tokens, {timing.new_tokens} new tokens, "
        f"first after {timing.ttft_ms:.0f} ms, all after {timing.total_ms:.0f} ms: "
        f"prefill {timing.prefill_ms:.1f}, decode {timing.decode_ms:.1f} in {timing.decode_runs} runs, "
        f"grammar {timing.grammar_ms:.1f}, Python {timing.python_ms:.1f}",
        file=sys.stderr,
    )


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
