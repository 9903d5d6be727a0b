"""`python -m runtime BUNDLE "utterance"`: what a device does with a bundle, from a shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import CockpitError, UsageError

EXAMPLES = """\
examples:
  python -m runtime bundle/ "set the driver side to 22 degrees"
  python -m runtime bundle/ "打开左后车窗" --json
  python -m runtime bundle/ "take me home" --task navigation
  python -m runtime bundle/ --verify
  python -m runtime bundle/ --bench --prompt-tokens 256 --new-tokens 64

exit codes:
  0 done   1 internal error   2 wrong usage, or an answer that is no valid call   5 the bundle is refused
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
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
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    parser.add_argument(
        "--unconstrained", action="store_true", help="let the model say anything; an invalid call is an error"
    )
    parser.add_argument("--task", help="answer with this task's adapter, in a bundle that has several")
    parser.add_argument("--verify", action="store_true", help="check every file's digest and stop")
    parser.add_argument("--bench", action="store_true", help="measure load, first token, tokens, memory")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="for --bench (default 256)")
    parser.add_argument("--new-tokens", type=int, default=64, help="for --bench (default 64)")
    parser.add_argument("--runs", type=int, default=5, help="for --bench (default 5)")
    return parser


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

    manifest = verify(options.bundle)
    summary: dict[str, Any] = {
        "name": manifest.name,
        "precision": manifest.precision,
        "admitted": manifest.gate is not None,
        "tasks": [entry.name for entry in manifest.adapters or ()],
        "files": len(manifest.files),
        "bytes": sum(file.size for file in manifest.files.values()),
    }
    if options.json:
        _print_json(summary)
        return
    state = "admitted" if summary["admitted"] else "a candidate, not admitted by a gate"
    tasks = f"; tasks: {', '.join(summary['tasks']) or 'none yet'}" if manifest.adapters is not None else ""
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

    assistant = load(options.bundle, threads=options.threads, provider=options.provider)
    assistant.use(options.task)
    result = assistant.call(options.utterance, options.max_new_tokens, constrained=not options.unconstrained)
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
        f"first after {timing.ttft_ms:.0f} ms, all after {timing.total_ms:.0f} ms",
        file=sys.stderr,
    )


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
