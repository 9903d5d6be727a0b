"""Conversations of several turns: what was computed is kept, and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime
from export.bundle import Description, package
from runtime.assistant import Assistant
from runtime.chat import Message
from runtime.errors import UsageError

FIRST = "set the driver side to 22 degrees"


@pytest.fixture
def assistant(tiny_bundle: Path) -> Assistant:
    return runtime.load(tiny_bundle, threads=1)


@pytest.fixture
def fed(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run of the base's first conversation was given."""
    found: list[int] = []
    feed = assistant.decoder.feed
    monkeypatch.setattr(
        assistant.decoder, "feed", lambda tokens: (found.append(len(tokens)), feed(tokens))[1]
    )
    return found


def turns(assistant: Assistant, count: int) -> list[Message]:
    messages = assistant.messages(FIRST)
    for turn in range(1, count):
        messages += [
            {"role": "assistant", "content": "done " * turn},
            {"role": "user", "content": f"and {turn} more"},
        ]
    return messages


def last(assistant: Assistant, messages: list[Message]) -> bytes:
    """The logits behind an answer."""
    list(assistant.generate(messages, max_new_tokens=3))
    return assistant.decoder.feed([7]).tobytes()


def test_a_turn_feeds_what_is_new_and_no_more(assistant: Assistant, fed: list[int]) -> None:
    lengths = [len(assistant._chat.prompt(turns(assistant, count))) for count in (1, 2, 3)]
    for before, length, count in zip([0, *lengths], lengths, (1, 2, 3), strict=False):
        fed.clear()
        list(assistant.generate(turns(assistant, count), max_new_tokens=1))
        new = length - before if before else length - len(assistant._prefix)
        assert fed == [new]
        assert 0 < new < length


def test_the_turns_before_are_not_seen_in_the_answer(assistant: Assistant, tiny_bundle: Path) -> None:
    fresh = {
        count: last(runtime.load(tiny_bundle, threads=1), turns(assistant, count)) for count in (1, 2, 3)
    }
    for count in (1, 2, 3, 2, 3, 1, 3):
        assert last(assistant, turns(assistant, count)) == fresh[count]
    other: list[Message] = [*turns(assistant, 2), {"role": "assistant", "content": "no"}]
    other += [{"role": "user", "content": "x"}]
    last(assistant, other)
    assert last(assistant, turns(assistant, 3)) == fresh[3]
    assistant.answer("x", 4)
    assert last(assistant, turns(assistant, 3)) == fresh[3]


def test_a_template_that_shows_old_turns_differently_only_costs_time(
    tiny_exported: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    """As those of thinking models: what opens the last answer is not there before earlier ones."""
    exported = Path(shutil.copytree(tiny_exported, tmp_path / "exported"))
    template = (exported / "chat_template.jinja").read_text(encoding="utf-8")
    opened = "<|im_start|>assistant\n"
    assert opened in template
    (exported / "chat_template.jinja").write_text(
        template.replace(opened, f"{opened}<think></think>\n"), encoding="utf-8"
    )
    package(exported, tmp_path / "bundle", tiny_tools_file, tiny_description)
    assistant = runtime.load(tmp_path / "bundle", threads=1)
    fresh = last(runtime.load(tmp_path / "bundle", threads=1), turns(assistant, 2))
    last(assistant, turns(assistant, 1))
    assert last(assistant, turns(assistant, 2)) == fresh


def interleaved(streams: list[Iterator[str]]) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in streams]
    live = list(enumerate(streams))
    while live:
        for at, stream in list(live):
            piece = next(stream, None)
            if piece is None:
                live.remove((at, stream))
            else:
                found[at].append(piece)
    return found


def test_conversations_that_are_read_in_turn_do_not_disturb_each_other(assistant: Assistant) -> None:
    asked = [turns(assistant, 1), turns(assistant, 2), assistant.messages("x")]
    alone = [list(assistant.generate(messages, 20)) for messages in asked]
    assert interleaved([assistant.generate(messages, 20) for messages in asked]) == alone
    answered = assistant.answer("x", 12)
    stream = assistant.generate(asked[1], 20)
    begun = [next(stream)]
    assert assistant.answer("x", 12).tokens == answered.tokens
    assert begun + list(stream) == alone[1]
    assert len(assistant._tasks._lanes[None]) == 1  # what was made for them is gone


def test_a_growing_cache_serves_two_conversations_as_well(
    tiny_growing: Path, tiny_tools_file: Path, tiny_description: Description, tmp_path: Path
) -> None:
    import dataclasses

    description = dataclasses.replace(tiny_description, exporter="optimum")
    package(tiny_growing, tmp_path / "bundle", tiny_tools_file, description)
    assistant = runtime.load(tmp_path / "bundle", threads=1)
    asked = [turns(assistant, 1), turns(assistant, 2)]
    alone = [list(assistant.generate(messages, 12)) for messages in asked]
    assert interleaved([assistant.generate(messages, 12) for messages in asked]) == alone


def test_a_stream_notices_that_its_decoder_was_used(assistant: Assistant) -> None:
    stream = assistant.generate(assistant.messages("x"), max_new_tokens=100)
    next(stream)
    assistant.decoder.reset()
    assistant.decoder.feed([5] * 40)
    with pytest.raises(UsageError, match="used by others"):
        list(stream)
    list(assistant.generate(assistant.messages("x"), max_new_tokens=2))
