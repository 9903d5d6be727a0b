"""Records → token ids: the prompt that the runtime will build, and the answer that it should produce."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.data.records import Record
from runtime import calls
from runtime.calls import AnswerForm, Tool, call_text, parse_calls
from runtime.errors import DataError

Message = dict[str, Any]
"""One turn, as chat templates expect it."""
Listed = dict[str, Any] | Callable[..., Any]
"""A function, as transformers takes it; here always the first."""


@dataclass(frozen=True)
class Example:
    """A conversation as token ids. The loss is on `answer` alone.

    Attributes:
        prompt: system and user turns, and the opening of the assistant's.
        answer: the calls' text and the token that ends a turn.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    """The chat template's own form of a call where it defines one, else a JSON array.

    Raises:
        DataError: the tokenizer has no chat template, or one whose tool calls are written in a form
            that is not known here.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise DataError("the base has no chat template; choose an instruction-tuned base")
    return calls.answer_form(template)


def render(record: Record, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool], system: str) -> Example:
    """The token ids of a record, as the runtime will meet them: the prompt encoded alone, then the answer.

    Args:
        record: what was said, and its calls.
        tokenizer: the base's, with its chat template.
        tools: listed in the prompt only where the chat template has a place for them.
        system: the system prompt.

    Raises:
        DataError: a call does not satisfy its tool's schema, or the chat template does not begin a whole
            conversation with the very prompt that it makes for an unanswered one.
    """
    form = answer_form(tokenizer)
    try:
        answer = call_text(record.calls, tools, form)
    except DataError as error:
        raise DataError(f"record {record.id}: {error}") from error
    conversation: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": record.utterance},
    ]
    listed = [_listed(tool) for tool in tools] if form == "hermes" else None
    prompt = _text(tokenizer, conversation, listed, unanswered=True)
    whole = _text(tokenizer, [*conversation, _turn(answer, form)], listed, unanswered=False)
    end = tokenizer.eos_token
    if not isinstance(end, str):
        raise DataError("the base's tokenizer has no end-of-turn token; choose an instruction-tuned base")
    if not whole.startswith(f"{prompt}{answer}{end}"):
        raise DataError(
            f"record {record.id}: the chat template ends an answered conversation with {whole[-80:]!r}, "
            f"which is not its own prompt, the answer and {end!r}; choose a base whose template only appends"
        )
    return Example(
        tuple(tokenizer.encode(prompt, add_special_tokens=False)),
        tuple(tokenizer.encode(answer + end, add_special_tokens=False)),
    )


def _text(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[Message],
    tools: list[Listed] | None,
    *,
    unanswered: bool,
) -> str:
    """The conversation as the chat template writes it; a model that can think aloud is asked not to."""
    text = tokenizer.apply_chat_template(
        conversation,
        tools=tools,
        add_generation_prompt=unanswered,
        tokenize=False,
        enable_thinking=False,
    )
    if not isinstance(text, str):
        raise DataError("the base's chat template does not render a conversation to text")
    return text


def _turn(answer: str, form: AnswerForm) -> Message:
    """The assistant's message that a chat template should write as `answer`."""
    if form == "json":
        return {"role": "assistant", "content": answer}
    calls = parse_calls(answer, form)
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def supervised_share(examples: Iterable[Example]) -> float:
    """Share of tokens that the loss is on, from 0 to 1."""
    lengths = [(len(example.prompt), len(example.answer)) for example in examples]
    answers = sum(answer for _, answer in lengths)
    return answers / (answers + sum(prompt for prompt, _ in lengths))


def _listed(tool: Tool) -> Listed:
    """A function as chat templates expect it."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
