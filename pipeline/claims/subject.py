"""The run that claims are checked on: its directories, and its conversations as packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.packing import Row, pack
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.stage import artifact
from runtime.calls import load_tools
from runtime.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class Subject:
    """What a build left behind.

    Attributes:
        run: the run's folder.
        base: the base checkpoint.
        adapter: what was trained on it.
        merged: the checkpoint of both.
        lineage: base, adapter and merged → digest.
        training: rows of the training split.
        validation: rows of the validation split, whose sentence forms training never saw.
    """

    run: Path
    base: Path
    adapter: Path
    merged: Path
    lineage: dict[str, str]
    training: tuple[Row, ...]
    validation: tuple[Row, ...]


def subject(config: Config, file: Path, runs: Path) -> Subject:
    """Find a config's run.

    Args:
        config: what was built.
        file: the config file, for the error that names the command to run first.
        runs: where runs are kept.

    Raises:
        UsageError: the run lacks a directory that is needed.
        CheckpointError: the base's tokenizer cannot be loaded.
        DataError: its records are malformed or longer than the base's context.
    """
    run = runs / config.name
    missing = [name for name in ("base", "data", "adapter", "merged") if not (run / name).is_dir()]
    if missing:
        raise UsageError(
            f"{run} has no {', '.join(missing)}, so there is nothing to check claims on; "
            f"run `cockpit build {file}` first"
        )
    base, adapter, merged = run / "base", run / "adapter", run / "merged"
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {base}: {error}") from error
    tools = load_tools(run / "data" / "tools.json")

    def rows(split: str) -> tuple[Row, ...]:
        records = read_records(run / "data" / f"{split}.jsonl")
        examples = [render(record, tokenizer, tools, config.data.system) for record in records]
        # The build has trained on them, so that none is too long for the base.
        context = max(len(example.prompt) + len(example.answer) for example in examples)
        length = config.train.tokens_per_step
        return tuple(pack(examples, length=length, context=context, seed=config.seed))

    return Subject(
        run=run,
        base=base,
        adapter=adapter,
        merged=merged,
        lineage={name: artifact(run / name).digest for name in ("base", "adapter", "merged")},
        training=rows("train"),
        validation=rows("validation"),
    )
