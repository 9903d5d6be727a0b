"""The run that claims are checked on: its directories, and its conversations as packed rows."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.claims.folders import Folders
from pipeline.config import Config
from pipeline.data.packing import Row, pack
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.stage import artifact
from runtime.calls import load_tools
from runtime.errors import CheckpointError


@dataclass(frozen=True)
class Subject:
    """A run, read.

    Attributes:
        folders: its directories.
        lineage: base, adapter and merged → digest.
        training: rows of the training split.
        validation: rows of the validation split, whose sentence forms training never saw.
    """

    folders: Folders
    lineage: dict[str, str]
    training: tuple[Row, ...]
    validation: tuple[Row, ...]


def subject(config: Config, folders: Folders) -> Subject:
    """Read a run.

    Args:
        config: what was built.
        folders: what it left.

    Raises:
        CheckpointError: the base's tokenizer cannot be loaded.
        DataError: a record is malformed.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folders.base, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {folders.base}: {error}") from error
    tools = load_tools(folders.data / "tools.json")

    def rows(split: str) -> tuple[Row, ...]:
        records = read_records(folders.data / f"{split}.jsonl")
        examples = [render(record, tokenizer, tools, config.data.system) for record in records]
        # The build has trained on them, so that none is too long for the base.
        context = max(len(example.prompt) + len(example.answer) for example in examples)
        length = config.train.tokens_per_step
        return tuple(pack(examples, length=length, context=context, seed=config.seed))

    models = {"base": folders.base, "adapter": folders.adapter, "merged": folders.merged}
    return Subject(
        folders=folders,
        lineage={name: artifact(folder).digest for name, folder in models.items()},
        training=rows("train"),
        validation=rows("validation"),
    )
