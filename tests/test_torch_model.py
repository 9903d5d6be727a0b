"""The unmerged model's logits and answers do not depend on what is computed together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.evidence.form import Conversation, alike
from pipeline.evidence.torch_model import TorchModel

PREFIX = (5, 9, 2, 7, 7, 1)
PROMPTS = [(*PREFIX, *own) for own in ((3,), (8, 4, 4), (6, 6), (11, 2, 9, 30), (40,), (17, 18))]
NEW_TOKENS = 12
UNUSED = 0
"""A token that the model never says here."""


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> TorchModel:
    return TorchModel(tiny_checkpoint, None, 1, "float64")


@pytest.fixture(scope="module")
def greedy(tiny_checkpoint: Path) -> list[list[int]]:
    """What the model says to each prompt, one token at a time and nothing remembered."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float64)
    answers = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(NEW_TOKENS):
                tokens.append(int(plain(torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def never(answer: Sequence[int]) -> bool:
    return False


def test_logits_behind_a_shared_prefix_are_those_of_each_alone(model: TorchModel) -> None:
    conversations = [Conversation("", prompt, len(PREFIX)) for prompt in PROMPTS]
    together = model.logits(conversations)
    for conversation, logits in zip(conversations, together, strict=True):
        assert logits.shape == (conversation.positions, model.vocabulary)
        np.testing.assert_allclose(logits, model.logits([conversation])[0], rtol=1e-6, atol=1e-6)


def test_answers_are_greedy_decoding(model: TorchModel, greedy: list[list[int]]) -> None:
    assert model.answers(PROMPTS, UNUSED, NEW_TOKENS, never) == greedy


def test_drafts_change_nothing(model: TorchModel, greedy: list[list[int]]) -> None:
    wrong_last = [*greedy[2][:-1], greedy[2][-1] ^ 1]
    drafts = [greedy[0], [greedy[1][0] ^ 1, *greedy[1]], wrong_last, greedy[3][:5], [], greedy[5] * 2]
    assert model.answers(PROMPTS, UNUSED, NEW_TOKENS, never, drafts=drafts) == greedy


def test_the_stop_token_ends_an_answer(model: TorchModel, greedy: list[list[int]]) -> None:
    stop = greedy[3][4]
    wanted = [answer[: answer.index(stop)] if stop in answer else answer for answer in greedy]
    assert len(wanted[3]) < NEW_TOKENS
    assert model.answers(PROMPTS, stop, NEW_TOKENS, never) == wanted
    assert model.answers(PROMPTS, stop, NEW_TOKENS, never, drafts=greedy) == wanted


def test_a_hopeless_answer_is_abandoned(model: TorchModel, greedy: list[list[int]]) -> None:
    def second(answer: Sequence[int]) -> bool:
        return len(answer) == 2

    drafts = [[answer[0], answer[1] ^ 1] for answer in greedy]
    assert model.answers(PROMPTS, UNUSED, NEW_TOKENS, second) == [answer[:2] for answer in greedy]
    assert model.answers(PROMPTS, UNUSED, NEW_TOKENS, second, drafts=drafts) == [
        answer[:2] for answer in greedy
    ]


def test_groups_are_of_like_length() -> None:
    lengths = [40, 10, 11, 90, 12, 41, 10, 43]
    groups = alike(lengths, 100)
    assert groups == [[1, 6, 2, 4], [0, 5], [7], [3]]
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert alike([500], 100) == [[0]]
    assert alike([], 100) == []
