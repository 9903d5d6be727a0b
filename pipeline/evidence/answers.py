"""Answers to the test utterances: of the bare base, the unmerged model and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.config import Validate
from pipeline.data.prepare import domain
from pipeline.data.records import Record
from pipeline.data.render import Example
from pipeline.evidence.statistics import mean
from pipeline.evidence.task import UNMERGED, Question, Reply
from pipeline.evidence.torch_model import TorchModel
from pipeline.stage import Progress
from runtime import Assistant
from runtime.calls import AnswerForm, call_text, check_call, parse_calls
from runtime.errors import DataError
from runtime.report import Generations

BASE = "base"
_OPENING: Mapping[AnswerForm, str] = {"json": "[", "hermes": "<tool_call>"}


@dataclass(frozen=True)
class TorchAnswers:
    """What torch answered: replies by contender, and the unmerged model's token ids."""

    replies: dict[str, list[Reply]]
    unmerged_tokens: list[list[int]]


def base_and_unmerged(
    settings: Validate,
    unmerged: TorchModel,
    assistant: Assistant,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    progress: Progress,
) -> TorchAnswers:
    """Greedy answers of the base and the unmerged model, without a grammar."""
    tokens = {
        BASE: torch_answers(
            settings, unmerged, assistant, tokenizer, examples, BASE, progress, adapter=False
        ),
        UNMERGED: torch_answers(settings, unmerged, assistant, tokenizer, examples, UNMERGED, progress),
    }
    replies = {name: torch_replies(found, tokenizer, assistant) for name, found in tokens.items()}
    return TorchAnswers(replies, tokens[UNMERGED])


def torch_answers(
    settings: Validate,
    model: TorchModel,
    assistant: Assistant,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    name: str,
    progress: Progress,
    *,
    adapter: bool = True,
) -> list[list[int]]:
    """Token ids of a torch model's greedy answers, without a grammar.

    Args:
        settings: `max_new_tokens` is read.
        model: who answers.
        assistant: a bundle of the same form of answer.
        tokenizer: the training side's.
        examples: prompts, and answers that a trained model is likely to give, which saves time alone.
        name: of the model, for `progress`.
        progress: told how it goes.
        adapter: False answers with the bare base.
    """
    opening = _OPENING[assistant.manifest.prompt.form]

    def hopeless(answer: Sequence[int]) -> bool:
        # A list of calls has one opening: an answer that begins otherwise is wrong, however it goes on.
        text = str(tokenizer.decode(list(answer))).lstrip()
        return not (text.startswith(opening) or opening.startswith(text))

    return model.answers(
        [example.prompt for example in examples],
        examples[0].answer[-1],
        settings.max_new_tokens,
        hopeless,
        adapter=adapter,
        drafts=[example.answer for example in examples] if adapter else None,
        progress=lambda done: progress(f"{name} answers", done, len(examples)),
    )


def torch_replies(
    answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, assistant: Assistant
) -> list[Reply]:
    """A torch model's answers as the task is scored."""
    return [reply(str(tokenizer.decode(list(answer))), assistant) for answer in answers]


def bundle_replies(
    settings: Validate, assistant: Assistant, records: Sequence[Record], progress: Progress
) -> list[Reply]:
    """The bundle's answers as a car would get them: constrained to the tools' grammar."""
    replies = []
    for done, record in enumerate(records, 1):
        answer = assistant.answer(record.utterance, settings.max_new_tokens)
        replies.append(reply(answer.text, assistant) if answer.complete else Reply(answer.text, None))
        progress("bundle answers", done, len(records))
    return replies


def generations(
    settings: Validate,
    assistant: Assistant,
    records: Sequence[Record],
    unmerged: Sequence[Sequence[int]],
    progress: Progress,
) -> Generations:
    """Greedy answers of the bundle without a grammar against the unmerged model's tokens.

    They are compared as far as the unmerged model's goes, since one that has no hope is cut short.
    """
    chosen = records[: settings.generations]
    alike: list[bool] = []
    firsts: list[int] = []
    for done, (record, wanted) in enumerate(zip(chosen, unmerged, strict=False), 1):
        found = assistant.answer(record.utterance, len(wanted) + 1, constrained=False).tokens
        pairs = enumerate(zip(wanted, found, strict=False))
        first = next((at for at, (a, b) in pairs if a != b), min(len(wanted), len(found)))
        alike.append(first == len(wanted))
        if first < len(wanted):
            firsts.append(first)
        progress("greedy answers", done, len(chosen))
    return Generations(
        prompts=len(chosen),
        identical=mean([float(same) for same in alike]),
        first_difference=float(np.median(firsts)) if firsts else None,
    )


def question(record: Record, assistant: Assistant) -> Question:
    """A test record as the task is scored."""
    domains = {domain(call.name) for call in record.calls}
    return Question(
        id=record.id,
        utterance=record.utterance,
        language=record.lang,
        domain="refusal" if not domains else "several" if len(domains) > 1 else domains.pop(),
        calls=record.calls,
        text=call_text(record.calls, assistant.tools, assistant.manifest.prompt.form),
    )


def reply(text: str, assistant: Assistant) -> Reply:
    """A text as the task is scored: its calls, where they parse and satisfy the tools' schemas."""
    try:
        calls = parse_calls(text, assistant.manifest.prompt.form)
        for call in calls:
            check_call(call, assistant.tools)
    except DataError:
        return Reply(text, None)
    return Reply(text, calls)
