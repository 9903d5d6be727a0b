"""Messages → token ids, as transformers' `apply_chat_template(tokenize=True)` gives them; and back.

The template is data from the bundle, so it runs in Jinja's immutable sandbox. What it can call is what
transformers offers to templates: `tojson`, `raise_exception`, `strftime_now`, loop controls, and the
`generation` tag, which only marks text for training and renders what it encloses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn, TypedDict

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runtime.calls import Tool
from runtime.errors import BundleError, PromptError
from runtime.schema import JSONValue

_CHARACTERS_A_TOKEN = 4
"""About as many as a token has where it has many."""


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


class Chat:
    """A bundle's tokenizer and chat template."""

    def __init__(self, directory: Path) -> None:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja of a verified bundle.

        Raises:
            BundleError: one of them cannot be understood.
        """
        try:
            self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise BundleError(f"tokenizer.json cannot be read: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        try:
            config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            source = (directory / "chat_template.jinja").read_text(encoding="utf-8")
            self._template = _environment().from_string(source)
        except (OSError, ValueError, jinja2.TemplateError) as error:
            raise BundleError(f"the chat template cannot be read: {error}") from error
        self._special_names = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, str | dict)
        }
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), context: int | None = None
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Args:
            messages: the turns, at least one.
            tools: functions that the template itself presents to the model; none for one that does not.
            context: most tokens there is room for: a message that is far too long is not read to its end.

        Raises:
            PromptError: there are no messages; one is malformed, does not fit the context, or spells a
                control token, which would let what somebody says end its own turn; or the template
                refuses the conversation.
        """
        if not messages:
            raise PromptError("a conversation needs at least one message")
        for index, message in enumerate(messages):
            self._check(message, index, context)
        return self.rendered(messages, tools)

    def rendered(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """As `prompt`, for messages that it has let pass.

        Raises:
            PromptError: the template refuses the conversation.
        """
        presented = [_openai(tool) for tool in tools] or None
        try:
            text = self._template.render(
                **self._special_names,
                messages=list(messages),
                tools=presented,
                add_generation_prompt=True,
                # A command is answered at once, by a model that could think aloud as well.
                enable_thinking=False,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error
        return self._encode(text)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of whole tokens, without control tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def stream(self) -> DetokenizerStream:
        """A stream that turns tokens into text one at a time."""
        return DetokenizerStream(self.tokenizer)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _check(self, message: Mapping[str, object], index: int, context: int | None) -> None:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise PromptError(f'message {index} must have exactly "role" and "content"')
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not isinstance(content, str):
            raise PromptError(f'"role" and "content" of message {index} must be strings')
        for spoken in (role, content):
            try:
                spoken.encode()
            except UnicodeEncodeError:
                raise PromptError(f"message {index} is not valid Unicode; send whole characters") from None
            if context is not None and self._has_more_tokens(spoken, context):
                raise PromptError(
                    f"message {index} has more than {context} tokens, and the context holds {context}, "
                    "answer included; shorten it"
                )
            # Encoded rather than searched: the tokenizer alone decides what it takes for a token.
            found = self._special.keys() & self._encode(spoken)
            if found:
                names = ", ".join(sorted(self._special[number] for number in found))
                raise PromptError(f"message {index} contains the control token {names}; remove it")

    def _has_more_tokens(self, text: str, count: int) -> bool:
        """Whether a long text surely has more tokens, by as much of it as shows that."""
        read = _CHARACTERS_A_TOKEN * count
        while read < len(text):
            words = self.tokenizer.encode(text[:read], add_special_tokens=False).word_ids
            # The last word may be cut, which spells it otherwise near the cut.
            if len(words) - words.count(words[-1]) > count or len(words) > 2 * count:
                return True
            read *= 2
        return False


class DetokenizerStream:
    """Tokens in, text out, never half a character: bytes wait until their character is complete.

    Bytes that can never become a character are U+FFFD, as in the text of all tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token: int) -> str:
        """The text that this token completes, or an empty string."""
        return self._stream.step(self._tokenizer, token) or ""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` renders its body."""

    tags = {"generation"}  # noqa: RUF012  # the name and type that Jinja reads

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: JSONValue,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _openai(tool: Tool) -> dict[str, JSONValue]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }
