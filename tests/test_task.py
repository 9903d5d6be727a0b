"""Scores worked out by hand."""

import pytest

from pipeline.evidence.task import Question, Reply, task_report
from runtime.calls import Call

OPEN = Call("window_open", {"position": "driver", "percent": 50})
CLOSE = Call("window_close", {"position": "driver"})


def question(index: int, *calls: Call, language: str = "en", domain: str = "windows") -> Question:
    return Question(f"q{index}", f"utterance {index}", language, domain, calls, f"text {index}")


QUESTIONS = [
    question(0, OPEN),
    question(1, OPEN, CLOSE),
    question(2, domain="refusal"),
    question(3, CLOSE, language="zh"),
]
RIGHT = [Reply(q.text, q.calls) for q in QUESTIONS]


def test_a_perfect_contender_scores_one_everywhere() -> None:
    report = task_report(QUESTIONS, {"unmerged": RIGHT, "bundle": RIGHT})
    score = report.contenders[1].overall
    assert score.refusal is not None
    figures = (score.exact_call, score.function_name, score.argument_f1, score.refusal, score.valid)
    assert [figure.value for figure in figures] == [1] * 5
    assert report.exact_call_drop.value == 0
    assert report.mcnemar_p == 1


def test_each_kind_of_mistake_costs_what_it_should() -> None:
    replies = [
        Reply("wrong value", (Call("window_open", {"position": "driver", "percent": 60}),)),
        Reply("one call of two", (OPEN,)),
        Reply("a call where none fits", (CLOSE,)),
        Reply("not JSON", None),
    ]
    report = task_report(QUESTIONS, {"unmerged": RIGHT, "bundle": replies})
    score = report.contenders[1].overall
    assert score.exact_call.value == 0
    assert score.function_name.value == pytest.approx(1 / 4)
    # 6 arguments expected, 5 given, 3 of them right.
    assert score.argument_f1.value == pytest.approx(2 * 3 / (6 + 5))
    assert score.refusal is not None
    assert score.refusal.value == 0
    assert score.valid.value == pytest.approx(3 / 4)
    assert report.exact_call_drop.value == 1
    assert report.mcnemar_p == pytest.approx(2 / 16)


def test_order_of_calls_matters_and_types_do() -> None:
    swapped = [*RIGHT[:1], Reply("swapped", (CLOSE, OPEN)), *RIGHT[2:]]
    report = task_report(QUESTIONS, {"unmerged": RIGHT, "bundle": swapped})
    assert report.contenders[1].overall.exact_call.value == 0.75
    assert report.contenders[1].overall.argument_f1.value == 1


def test_groups_hold_their_own_utterances() -> None:
    report = task_report(QUESTIONS, {"unmerged": RIGHT, "bundle": RIGHT})
    bundle = report.contenders[1]
    assert {name: score.utterances for name, score in bundle.by_language.items()} == {"en": 3, "zh": 1}
    assert {name: score.utterances for name, score in bundle.by_domain.items()} == {
        "refusal": 1,
        "windows": 3,
    }
    assert bundle.by_language["zh"].refusal is None


def test_every_answer_is_kept() -> None:
    report = task_report(QUESTIONS, {"base": RIGHT[::-1], "unmerged": RIGHT, "bundle": RIGHT})
    assert len(report.answers) == 4
    assert report.answers[0].answers == {"base": "text 3", "unmerged": "text 0", "bundle": "text 0"}
    assert report.answers[0].exact == {"base": False, "unmerged": True, "bundle": True}
