"""A verified bundle as an assistant: streamed text, and function calls that are valid or an error."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.adapters import Adapter, load_adapter
from runtime.calls import Call, call_grammar, check_call, load_tools, parse_calls
from runtime.chat import Chat, Message
from runtime.constraint import ConstrainedAnswer, Constraint
from runtime.decoder import Decoder
from runtime.errors import BundleError, DataError, PromptError, TaskError, UsageError
from runtime.growing_decoder import GrowingDecoder
from runtime.kept import own_directory
from runtime.manifest import AdapterEntry, Manifest, verify
from runtime.packed import packed_graph
from runtime.pages import give_back
from runtime.sampling import GREEDY, Sampling, choose, choose_among
from runtime.session import Provider
from runtime.sites import read_sites
from runtime.tasks import Lane, Tasks, Used
from runtime.verified import verify_once


@dataclass(frozen=True)
class Timing:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer.
        ttft_ms: until the first new token was known, in milliseconds.
        total_ms: until the last one was, in milliseconds.
        prefix_tokens: of the prompt's tokens, those that every prompt begins with and that had to be
            computed again: none, but for a task's first answer and after other use of its decoder.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    total_ms: float
    prefix_tokens: int


@dataclass(frozen=True)
class Answer:
    """What the model said to an utterance, not yet read as calls.

    Attributes:
        text: without control tokens.
        tokens: the new tokens, without the one that ends the answer.
        complete: False when `max_new_tokens` or the context ended it.
    """

    text: str
    tokens: tuple[int, ...]
    complete: bool
    timing: Timing


@dataclass(frozen=True)
class CallResult:
    """Calls that satisfy their tools' schemas; none when no function fits the utterance."""

    calls: tuple[Call, ...]
    text: str
    timing: Timing


def load(
    path: Path | str,
    threads: int = 2,
    provider: Provider = "cpu",
    spin: bool = True,
    cache: Path | str | None = None,
) -> Assistant:
    """Verify a bundle, then open it.

    Args:
        path: the bundle's directory.
        threads: threads of one operator, 1 to the machine's cores.
        provider: `cpu` or `cuda`; one that this machine cannot use is an error, not a fallback.
        spin: whether idle threads wait in a loop between tokens: faster, and they burn CPU time for some
            30 ms behind an answer; after that neither way does.
        cache: a directory of this user's own, for what makes the next load faster: packed weights
            (`runtime.packed`), and which files were verified (`runtime.verified`). It may be emptied at any
            time, and may be used for several bundles.

    Raises:
        BundleError: the bundle is missing, altered, malformed or needs another ONNX Runtime.
        UsageError: threads, provider or cache cannot be had here.
    """
    directory = Path(path)
    kept = None if cache is None else own_directory(cache)
    manifest = verify(directory) if kept is None else verify_once(directory, kept)
    needed = manifest.requirements.onnxruntime
    if _version(onnxruntime.__version__) < _version(needed):
        raise BundleError(
            f"this bundle needs onnxruntime {needed} or later; {onnxruntime.__version__} is installed"
        )
    return Assistant(directory, manifest, threads, provider, spin, kept)


class Assistant:
    """One loaded bundle, whose model may have several adapters.

    Several threads may ask at once. Answers of different tasks are computed side by side and answers of one
    task in turn, except that one which is streamed (`generate`) ends in a UsageError when another answer of
    its task is begun before it is read. `use` is meant for all threads: those that ask for different tasks
    name theirs. A decoder that is used directly is for one thread.

    Attributes:
        manifest: the bundle's verified manifest.
        tools: the functions it may call.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        threads: int,
        provider: Provider,
        spin: bool,
        cache: Path | None,
    ) -> None:
        """Open the parts of a verified bundle; `load` verifies first."""
        self.manifest = manifest
        self._directory = directory
        try:
            self.tools = load_tools(directory / "tools.json")
        except DataError as error:
            raise BundleError(str(error)) from error
        prompt, limits = manifest.prompt, manifest.limits
        self._stop = frozenset(prompt.stop_tokens)
        # A template that defines tool calls lists the tools itself; another model learnt them by training.
        self._shown = self.tools if prompt.form == "hermes" else ()
        # Each takes as long as the others, and none holds the interpreter.
        with ThreadPoolExecutor(max_workers=2) as pool:
            base = pool.submit(self._model, threads, provider, spin, cache)
            constraint = pool.submit(
                Constraint,
                (directory / "tokenizer.json").read_text(encoding="utf-8"),
                limits.vocabulary,
                prompt.stop_tokens,
                call_grammar(self.tools, prompt.form),
            )
            self._chat = Chat(directory)
            self._constraint = constraint.result()
            self._tasks = Tasks(base.result())
        self._prefix = self._common_prefix(limits.context)
        if self._prefix:
            self._hold_prefix(self._tasks.lane(None))
        for entry in manifest.adapters or ():
            self._tasks.add(self._listed(entry))
        give_back()  # what reading the graph, the tokenizer and the grammar took for a while

    @property
    def decoder(self) -> Decoder | GrowingDecoder:
        """Token ids → logits, of the task in use; using it directly is allowed at any time."""
        return self._tasks.lane(Used.TASK).decoder

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task there is an adapter for, in order of name."""
        return self._tasks.names

    def use(self, task: str | None) -> None:
        """Answer with a task's adapter, or with the bare base, whenever no task is named.

        Raises:
            TaskError: there is no such task.
        """
        self._tasks.use(task)

    def add(self, file: Path | str) -> str:
        """Take one more adapter, while others answer; the name of its task.

        Args:
            file: a NAME.onnx_adapter with its NAME.json beside it.

        Raises:
            TaskError: the bundle takes no adapters, or has a task of this name.
            BundleError: the adapter is missing, damaged, or does not belong to this bundle.
        """
        adapter = self._open(Path(file))
        self._tasks.add(adapter)
        return adapter.name

    def remove(self, task: str) -> None:
        """Forget a task and free its adapter and cache, while others answer.

        Raises:
            TaskError: there is no such task, it is in use, or it is answering.
        """
        self._tasks.remove(task)

    def _model(
        self, threads: int, provider: Provider, spin: bool, cache: Path | None
    ) -> Decoder | GrowingDecoder:
        """An empty conversation with the bundle's model."""
        limits, files = self.manifest.limits, self.manifest.files
        if self.manifest.exporter == "optimum":
            return GrowingDecoder(self._directory, limits.context, limits.vocabulary, threads, provider, spin)
        packed = None
        if cache is not None and provider == "cpu":
            parts = tuple(files[name].sha256 for name in ("model.onnx", "model.onnx.data") if name in files)
            packed = packed_graph(cache, self._directory, parts)
        return Decoder(self._directory, limits.context, limits.vocabulary, threads, provider, spin, packed)

    def _open(self, file: Path) -> Adapter:
        if self.manifest.adapters is None:
            raise TaskError("this bundle's model takes no adapters; package it with a switchable graph")
        files = self.manifest.files
        tokenizer, template = files["tokenizer.json"].sha256, files["chat_template.jinja"].sha256
        return load_adapter(file, read_sites(self._directory), tokenizer, template)

    def _listed(self, entry: AdapterEntry) -> Adapter:
        """An adapter of the bundle, which must be what the manifest says."""
        adapter = self._open(self._directory / entry.file)
        said = (entry.name, entry.sha256, entry.rank, entry.belongs_to)
        if said != (adapter.name, adapter.digest, adapter.rank, adapter.belongs_to):
            raise BundleError(f"bundle.json and the record of {entry.file} differ; package the bundle again")
        return adapter

    def messages(self, utterance: str) -> list[Message]:
        """The conversation that `call` has about an utterance: the bundle's system prompt, and it.

        Raises:
            PromptError: the utterance is empty.
        """
        if not utterance.strip():
            raise PromptError("the utterance is empty; say what to do")
        return [
            {"role": "system", "content": self.manifest.prompt.system},
            {"role": "user", "content": utterance},
        ]

    def prompt(self, utterance: str) -> list[int]:
        """Token ids that `call` feeds for an utterance.

        Raises:
            PromptError: the utterance is empty or contains a control token.
        """
        return self._chat.prompt(self.messages(utterance), self._shown)

    def call(
        self,
        utterance: str,
        max_new_tokens: int = 256,
        constrained: bool = True,
        task: str | Used | None = Used.TASK,
    ) -> CallResult:
        """Turn an utterance into function calls.

        Args:
            utterance: what somebody said.
            max_new_tokens: longest answer.
            constrained: whether the grammar of the tools limits every token. Without it the model may say
                anything, and an answer that is not valid calls is an error.
            task: whose adapter answers; None: the bare base; without it, the task in use.

        Raises:
            TaskError: there is no such task.
            PromptError: the utterance is empty, contains a control token, or does not fit the context.
            DataError: the answer was cut off, or (unconstrained) is not a list of valid calls. There is
                never a partly valid result.
            InferenceError: the model's numbers are not finite.
        """
        answer = self.answer(utterance, max_new_tokens, constrained, task)
        if not answer.complete:
            raise DataError(
                f"the answer was cut off after {len(answer.tokens)} tokens, so it is not a valid call; "
                f"allow more new tokens: {answer.text!r:.120}"
            )
        calls = parse_calls(answer.text, self.manifest.prompt.form)
        for call in calls:
            check_call(call, self.tools)
        return CallResult(calls, answer.text, answer.timing)

    def answer(
        self,
        utterance: str,
        max_new_tokens: int = 256,
        constrained: bool = True,
        task: str | Used | None = Used.TASK,
    ) -> Answer:
        """The text that `call` reads, whatever it is worth: for measuring how often it is valid.

        Raises:
            TaskError: as `call`.
            PromptError: as `call`.
            InferenceError: the model's numbers are not finite.
        """
        started = time.perf_counter()
        prompt = self.prompt(utterance)
        grammar = self._constraint.begin(self._chat.tokenizer) if constrained else None
        tokens: list[int] = []
        first = started
        with self._tasks.answering(task) as lane, lane.lock:
            for step in self._decode(lane, prompt, max_new_tokens, GREEDY, grammar):
                first = first if tokens else time.perf_counter()
                tokens += step
            prefix = lane.prefix_tokens
        ended = time.perf_counter()
        complete = tokens[-1] in self._stop
        said = tuple(tokens[:-1] if complete else tokens)
        timing = Timing(len(prompt), len(said), (first - started) * 1000, (ended - started) * 1000, prefix)
        return Answer(self._chat.text(said), said, complete, timing)

    def generate(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        task: str | Used | None = Used.TASK,
    ) -> Iterator[str]:
        """Answer a conversation in pieces of text, never half a character.

        The messages are checked at once; the answer is computed as it is read. It ends at a stop token,
        after `max_new_tokens`, or where the context is full. Its task is the one that is in use now.

        Raises:
            TaskError: there is no such task; or while reading, it was removed before the first piece.
            PromptError: no messages, a malformed one, a control token in one, or too long for the context.
            UsageError: while reading, when another answer of the task or its decoder was used in between.
            InferenceError: while reading, the model's numbers are not finite.
        """
        prompt = self._chat.prompt(messages, self._shown)
        self._room(prompt, max_new_tokens)
        named = self._tasks.used if isinstance(task, Used) else task
        self._tasks.lane(named)
        return self._pieces(prompt, max_new_tokens, sampling, named)

    def _pieces(
        self, prompt: list[int], max_new_tokens: int, sampling: Sampling, task: str | None
    ) -> Iterator[str]:
        stream = self._chat.stream()
        with self._tasks.answering(task) as lane:
            steps = self._decode(lane, prompt, max_new_tokens, sampling, None)
            while True:
                with lane.lock:  # a step at a time: nobody knows when the reader comes back
                    step = next(steps, None)
                if step is None:
                    return
                for token in step:
                    if token not in self._stop and (piece := stream.step(token)):
                        yield piece

    def _decode(
        self,
        lane: Lane,
        prompt: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        grammar: ConstrainedAnswer | None,
    ) -> Iterator[list[int]]:
        """New tokens in steps: a chosen one and those it forces. A last stop token is among them."""
        decoder = lane.decoder
        room = self._room(prompt, max_new_tokens)
        random = np.random.default_rng(sampling.seed)
        # What the grammar forces before the model has a say is fed with the prompt.
        forced = grammar.forced()[:room] if grammar else []
        logits = self._begin(lane, prompt + forced)
        used, mark = len(forced), decoder.mark()
        if used == room:
            yield forced
        while used < room:
            if grammar:
                token = choose_among(grammar.allowed(), logits, sampling, random)
            else:
                token = choose(logits, sampling, random)
            step = (grammar.take(token) if grammar else [token])[: room - used]
            expected = decoder.length
            yield forced + step
            forced = []
            used += len(step)
            if step[-1] in self._stop or used == room:
                return
            if decoder.length != expected or not decoder.holds(mark):
                raise UsageError("another answer was begun before this one ended; read one answer at a time")
            logits = decoder.feed(step)

    def _room(self, prompt: list[int], max_new_tokens: int) -> int:
        """How many new tokens an answer may have."""
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        context = self.manifest.limits.context
        left = context - len(prompt)
        if left < 1:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens and the context holds {context}, "
                "answer included; shorten it"
            )
        return min(max_new_tokens, left)

    def _begin(self, lane: Lane, tokens: list[int]) -> NDArray[np.float32]:
        """Feed the tokens of a new conversation; logits (V,) after the last.

        What every call begins with is kept in the cache. It is always fed on its own, also the first
        time: with activations quantized over the tokens of one run, the pieces a prompt is fed in show in
        the logits, and an answer must not depend on what was asked before it.
        """
        prefix = self._prefix
        lane.prefix_tokens = 0
        if not prefix or tokens[: len(prefix)] != prefix:
            lane.decoder.reset()
            return lane.decoder.feed(tokens)
        self._hold_prefix(lane)
        return lane.decoder.feed(tokens[len(prefix) :])

    def _hold_prefix(self, lane: Lane) -> None:
        """Leave a lane with just the common prefix in its cache."""
        if lane.mark is None or not lane.decoder.holds(lane.mark):
            lane.decoder.reset()
            lane.decoder.feed(self._prefix)
            lane.mark = lane.decoder.mark()
            lane.prefix_tokens = len(self._prefix)
        lane.decoder.rewind(len(self._prefix))

    def _common_prefix(self, context: int) -> list[int]:
        """The tokens that begin the prompt of every utterance: system prompt, tools, the user's header."""
        prompts = [self.prompt(probe) for probe in ("a", "Z", "0", "车", "- x", ".")]
        common = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
        prefix = [column[0] for column in common]
        return prefix if len(prefix) < context else []


def _version(text: str) -> tuple[int, ...]:
    """The numbers a version begins with: 1.32.0 of 1.32.0rc1+local."""
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
