"""Does it still do the job: function calls against the expected ones, contender by contender."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evidence.statistics import Floats, Samples, estimate, mcnemar, mean
from runtime.calls import Call
from runtime.report import Answer, ContenderScore, Estimate, Score, TaskReport

UNMERGED, BUNDLE = "unmerged", "bundle"


@dataclass(frozen=True)
class Question:
    """One utterance of the test split."""

    id: str
    utterance: str
    language: str
    domain: str
    calls: tuple[Call, ...]
    text: str
    """Canonical text of the calls."""


@dataclass(frozen=True)
class Reply:
    """What a contender said: its text, and its calls, or None when they are not valid."""

    text: str
    calls: tuple[Call, ...] | None


def task_report(questions: Sequence[Question], replies: Mapping[str, Sequence[Reply]]) -> TaskReport:
    """Score every contender on the same utterances.

    Args:
        questions: at least one.
        replies: contender → one reply per question; `unmerged` and `bundle` must be among them.
    """
    exact = {
        name: [_same(q, r) for q, r in zip(questions, said, strict=True)] for name, said in replies.items()
    }
    return TaskReport(
        contenders=tuple(_contender(name, questions, said) for name, said in replies.items()),
        exact_call_drop=mean(
            [float(a) - float(b) for a, b in zip(exact[UNMERGED], exact[BUNDLE], strict=True)]
        ),
        mcnemar_p=mcnemar(exact[UNMERGED], exact[BUNDLE]),
        answers=tuple(
            Answer(
                id=question.id,
                utterance=question.utterance,
                expected=question.text,
                answers={name: said[index].text for name, said in replies.items()},
                exact={name: exact[name][index] for name in replies},
            )
            for index, question in enumerate(questions)
        ),
    )


def _contender(name: str, questions: Sequence[Question], replies: Sequence[Reply]) -> ContenderScore:
    pairs = list(zip(questions, replies, strict=True))
    return ContenderScore(
        name=name,
        overall=_score(pairs),
        by_language=_by(pairs, lambda question: question.language),
        by_domain=_by(pairs, lambda question: question.domain),
    )


def _by(pairs: Sequence[tuple[Question, Reply]], group: Callable[[Question], str]) -> dict[str, Score]:
    names = sorted({group(question) for question, _ in pairs})
    return {name: _score([pair for pair in pairs if group(pair[0]) == name]) for name in names}


def _score(pairs: Sequence[tuple[Question, Reply]]) -> Score:
    names = [_names(question.calls) == _names(reply.calls) for question, reply in pairs]
    refusals = [float(reply.calls == ()) for question, reply in pairs if not question.calls]
    return Score(
        utterances=len(pairs),
        exact_call=mean([float(_same(question, reply)) for question, reply in pairs]),
        function_name=mean([float(same) for same in names]),
        argument_f1=_argument_f1(pairs),
        refusal=mean(refusals) if refusals else None,
        valid=mean([float(reply.calls is not None) for _, reply in pairs]),
    )


def _same(question: Question, reply: Reply) -> bool:
    return reply.calls == question.calls


def _names(calls: tuple[Call, ...] | None) -> list[str] | None:
    return None if calls is None else [call.name for call in calls]


def _argument_f1(pairs: Sequence[tuple[Question, Reply]]) -> Estimate:
    """Micro-averaged F1 of (function, argument, value); 1 where neither side has any argument."""
    expected = [_triples(question.calls) for question, _ in pairs]
    got = [_triples(reply.calls or ()) for _, reply in pairs]
    hits = np.asarray([2.0 * (a & b).total() for a, b in zip(expected, got, strict=True)])
    both = np.asarray([float(a.total() + b.total()) for a, b in zip(expected, got, strict=True)])

    def f1(chosen: Samples) -> Floats:
        total = both[chosen].sum(axis=1)
        return np.where(total > 0, hits[chosen].sum(axis=1) / np.maximum(total, 1.0), 1.0)

    return estimate(len(pairs), f1)


def _triples(calls: tuple[Call, ...]) -> Counter[tuple[str, str, str]]:
    return Counter(
        (call.name, argument, json.dumps(value, sort_keys=True, ensure_ascii=False))
        for call in calls
        for argument, value in call.arguments.items()
    )
