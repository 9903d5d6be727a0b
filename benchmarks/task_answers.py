"""The test utterances of a run, and what it takes to ask a model: for task.py and presets.py."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

import runtime
from pipeline.config import Validate
from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.evidence.answers import bundle_replies, question, torch_answers, torch_replies
from pipeline.evidence.statistics import mcnemar, mean
from pipeline.evidence.task import UNMERGED, Question, Reply
from pipeline.evidence.torch_model import TorchModel
from pipeline.stage import Progress
from runtime import Assistant
from runtime.report import Estimate


class Test:
    """Utterances of `data/test.jsonl`, drawn at random where fewer than all are asked."""

    def __init__(
        self, run: Path, bundle: Path, settings: Validate, utterances: int | None, seed: int
    ) -> None:
        """Read them.

        Args:
            run: has base/ and data/.
            bundle: its prompt and its tools are those that the model was trained with.
            settings: threads, and the longest answer.
            utterances: how many; None: all.
            seed: of the draw.

        Raises:
            CockpitError: the bundle or the records cannot be read.
        """
        self.settings = settings
        self.assistant: Assistant = runtime.load(bundle, threads=settings.threads)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            run / "base", local_files_only=True
        )
        records = read_records(run / "data" / "test.jsonl")
        # Neighbours in a collected file are alike.
        self.records = random.Random(seed).sample(records, min(utterances or len(records), len(records)))
        system = self.assistant.manifest.prompt.system
        self.examples = [
            render(record, self.tokenizer, self.assistant.tools, system) for record in self.records
        ]
        self.questions: list[Question] = [question(record, self.assistant) for record in self.records]

    def torch(
        self, checkpoint: Path, adapter: Path | None, name: str, told: Progress, *, bare: bool = False
    ) -> list[Reply]:
        """Replies of a checkpoint, with an adapter or without."""
        model = TorchModel(checkpoint, adapter, self.settings.threads, "float32")
        answers = torch_answers(
            self.settings, model, self.assistant, self.tokenizer, self.examples, name, told, adapter=not bare
        )
        return torch_replies(answers, self.tokenizer, self.assistant)

    def bundle(self, bundle: Path, told: Progress) -> list[Reply]:
        """Replies of a bundle."""
        assistant = runtime.load(bundle, threads=self.settings.threads)
        return bundle_replies(self.settings, assistant, self.records, told)


@dataclass(frozen=True)
class Paired:
    """A contender beside the unmerged model, utterance by utterance.

    Attributes:
        gain: its share of exact calls less the unmerged model's.
        better: utterances that it alone has right.
        worse: that the unmerged model alone has right.
        p: McNemar's.
    """

    gain: Estimate
    better: int
    worse: int
    p: float


def paired(questions: Sequence[Question], replies: Mapping[str, Sequence[Reply]]) -> dict[str, Paired]:
    """Every contender but the unmerged model, which must be among `replies`, beside it."""
    exact = {
        name: [said.calls == asked.calls for asked, said in zip(questions, found, strict=True)]
        for name, found in replies.items()
    }
    before = exact.pop(UNMERGED)
    return {name: _paired(before, after) for name, after in exact.items()}


def _paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    changes = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    return Paired(mean(changes), changes.count(1), changes.count(-1), mcnemar(before, after))


def percent(figure: Estimate | None) -> str:
    """One decimal, or a dash where there was nothing to measure."""
    return "–" if figure is None else f"{figure.value * 100:.1f}"


def interval(figure: Estimate, sign: str = "") -> str:
    """With its interval; `sign` "+" for a difference."""
    low, high = (f"{end * 100:{sign}.1f}" for end in (figure.low, figure.high))
    return (
        f"{figure.value * 100:{sign}.1f} ({low} to {high})" if sign else f"{percent(figure)} ({low}–{high})"
    )
