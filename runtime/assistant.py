"""A verified bundle as an assistant: streamed text, and function calls that are valid or an error."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import onnxruntime

from runtime.adapters import Adapter, load_adapter
from runtime.calls import Call, call_grammar, check_call, load_tools, parse_calls
from runtime.chat import Chat, Message
from runtime.constraint import Constraint
from runtime.decoder import Decoder
from runtime.errors import BundleError, DataError, PromptError, TaskError, UsageError
from runtime.generation import new_tokens
from runtime.growing_decoder import GrowingDecoder
from runtime.kept import own_directory
from runtime.manifest import AdapterEntry, Manifest, verify
from runtime.packed import packed_graph
from runtime.pages import give_back
from runtime.prefix_cache import PrefixCache
from runtime.sampling import GREEDY, Sampling
from runtime.session import Provider
from runtime.sites import read_sites
from runtime.stopping import Stopping
from runtime.tasks import Tasks, Used
from runtime.timing import Stopwatch, Timing
from runtime.verified import verify_once


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
            6 ms behind an answer; after that neither way does.
        cache: a directory of this user's own, for what makes the next load faster: which files were verified
            (`runtime.verified`), packed weights (`runtime.packed`), and what every prompt begins with
            (`runtime.prefix_cache`). It may be emptied at any time, and may be used for several bundles.

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
    return Assistant(directory, manifest, threads, provider, spin, kept if provider == "cpu" else None)


class Assistant:
    """One loaded bundle, whose model may have several adapters.

    Several threads may ask at once. Answers of different tasks are computed side by side and answers of one
    task in turn. One that is streamed (`generate`) has a conversation of its own until it ends or is closed,
    so that others may be begun and read in between. `use` is meant for all threads: those that ask for
    different tasks name theirs. A decoder that is used directly is for one thread, and a stream may be the
    other: it then ends in a UsageError.

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
        grammar = call_grammar(self.tools, prompt.form)
        parsed = Event()
        # The model takes as long as all else together. Reading tokenizer.json and its vocabulary keeps the
        # interpreter from others, who need it until the graph has been read.
        with ThreadPoolExecutor(max_workers=1) as pool:
            base = pool.submit(self._model, threads, provider, spin, cache, parsed)
            base.add_done_callback(lambda done: parsed.set())
            parsed.wait()
            self._chat = Chat(directory)
            self._prefix = self._common_prefix(limits.context)
            tasks = pool.submit(self._begin, base, cache, threads)
            self._constraint = Constraint(
                self._chat.tokenizer, limits.vocabulary, prompt.stop_tokens, grammar
            )
            self._tasks = tasks.result()
        for entry in manifest.adapters or ():
            self._tasks.add(self._listed(entry))
        give_back()  # what reading the graph, the tokenizer and the grammar took for a while

    def _begin(self, base: Future[Decoder | GrowingDecoder], cache: Path | None, threads: int) -> Tasks:
        """The bare base alone, with what every prompt begins with fed."""

        def saved(adapter: Adapter | None) -> PrefixCache | None:
            return None if cache is None else PrefixCache(cache, self.manifest, adapter, threads)

        tasks = Tasks(base.result(), self._prefix, saved)
        if self._prefix:
            tasks.lane(None).hold([self._prefix])
        return tasks

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
        self, threads: int, provider: Provider, spin: bool, cache: Path | None, parsed: Event
    ) -> Decoder | GrowingDecoder:
        """An empty conversation with the bundle's model."""
        limits, files = self.manifest.limits, self.manifest.files
        if self.manifest.exporter == "optimum":
            return GrowingDecoder(
                self._directory, limits.context, limits.vocabulary, threads, provider, spin, parsed
            )
        packed = None
        if cache is not None:
            parts = tuple(files[name].sha256 for name in ("model.onnx", "model.onnx.data") if name in files)
            packed = packed_graph(cache, self._directory, parts)
        return Decoder(
            self._directory, limits.context, limits.vocabulary, threads, provider, spin, packed, parsed
        )

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
            PromptError: the utterance is empty, contains a control token, or is far longer than the context.
        """
        return self._chat.prompt(self.messages(utterance), self._shown, self.manifest.limits.context)

    def call(
        self,
        utterance: str,
        max_new_tokens: int = 256,
        constrained: bool = True,
        task: str | Used | None = Used.TASK,
        deadline_s: float | None = None,
        cancel: Event | None = None,
    ) -> CallResult:
        """Turn an utterance into function calls.

        Args:
            utterance: what somebody said.
            max_new_tokens: longest answer.
            constrained: whether the grammar of the tools limits every token. Without it the model may say
                anything, and an answer that is not valid calls is an error.
            task: whose adapter answers; None: the bare base; without it, the task in use.
            deadline_s: seconds that the answer may take, waiting for its turn included.
            cancel: stops the answer once it is set, by another thread.

        Raises:
            TaskError: there is no such task.
            DeadlineError: the answer was not there in time. The assistant answers the next one.
            CancelledError: `cancel` was set. Either is noticed before the next run of the model: how long
                one takes is in docs/decisions/0014.
            PromptError: the utterance is empty, contains a control token, or does not fit the context.
            DataError: the answer was cut off, or (unconstrained) is not a list of valid calls. There is
                never a partly valid result.
            InferenceError: the model's numbers are not finite.
        """
        answer = self.answer(utterance, max_new_tokens, constrained, task, deadline_s, cancel)
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
        deadline_s: float | None = None,
        cancel: Event | None = None,
    ) -> Answer:
        """The text that `call` reads, whatever it is worth: for measuring how often it is valid.

        Raises:
            TaskError: as `call`.
            DeadlineError: as `call`.
            CancelledError: as `call`.
            PromptError: as `call`.
            InferenceError: the model's numbers are not finite.
        """
        watch, stopping = Stopwatch(), Stopping(deadline_s, cancel)
        prompt = self.prompt(utterance)
        room = self._room(prompt, max_new_tokens)
        grammar = None
        if constrained:
            with watch.grammar:
                grammar = self._constraint.begin()
        tokens: list[int] = []
        with self._tasks.answering(task, alone=False) as lane, stopping.holding(lane.lock):
            steps = new_tokens(
                lane, self._pieces(prompt, ()), room, GREEDY, grammar, self._stop, stopping, watch
            )
            for step in steps:
                watch.said()
                tokens += step
            prefix = lane.prefix_tokens
        complete = tokens[-1] in self._stop
        said = tuple(tokens[:-1] if complete else tokens)
        text = self._chat.text(said)
        return Answer(text, said, complete, watch.timing(len(prompt), len(said), prefix))

    def generate(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        task: str | Used | None = Used.TASK,
        deadline_s: float | None = None,
        cancel: Event | None = None,
    ) -> Iterator[str]:
        """Answer a conversation in pieces of text, never half a character.

        The messages are checked at once; the answer is computed as it is read. It ends at a stop token,
        after `max_new_tokens`, where the context is full, or when it is closed. Its task is the one that is
        in use now. A conversation that goes on where the last one ended is computed from there.

        Args:
            messages: the turns; the last is not the assistant's.
            max_new_tokens: longest answer.
            sampling: how tokens are chosen.
            task: whose adapter answers, as in `call`.
            deadline_s: seconds from now that reading the whole answer may take.
            cancel: stops the answer once it is set, by another thread.

        Raises:
            TaskError: there is no such task; or while reading, it was removed before the first piece.
            PromptError: no messages, a malformed one, a control token in one, or too long for the context.
            DeadlineError: while reading, the time is up. The pieces until then stay true.
            CancelledError: while reading, `cancel` was set.
            UsageError: while reading, when its decoder was used in between.
            InferenceError: while reading, the model's numbers are not finite.
        """
        stopping = Stopping(deadline_s, cancel)
        prompt = self._chat.prompt(messages, self._shown, self.manifest.limits.context)
        room = self._room(prompt, max_new_tokens)
        named = self._tasks.used if isinstance(task, Used) else task
        self._tasks.lane(named)
        return self._stream(self._pieces(prompt, messages), room, sampling, named, stopping)

    def _stream(
        self,
        pieces: list[list[int]],
        room: int,
        sampling: Sampling,
        task: str | None,
        stopping: Stopping,
    ) -> Iterator[str]:
        stream, watch = self._chat.stream(), Stopwatch()
        with self._tasks.answering(task, alone=True) as lane:
            for step in new_tokens(lane, pieces, room, sampling, None, self._stop, stopping, watch):
                for token in step:
                    if token not in self._stop and (piece := stream.step(token)):
                        yield piece

    def _pieces(self, prompt: list[int], messages: Sequence[Message]) -> list[list[int]]:
        """A prompt cut behind what every prompt begins with, and where the assistant answered before.

        What the model was fed for an earlier turn is a piece if the prompt begins with it; a template that
        shows old turns in another way than the last one leaves none.
        """
        ends = [len(self._prefix)] if prompt[: len(self._prefix)] == self._prefix else []
        for turn, message in enumerate(messages):
            if turn and message["role"] == "assistant":
                with suppress(PromptError):
                    earlier = self._chat.rendered(messages[:turn], self._shown)
                    if prompt[: len(earlier)] == earlier:
                        ends.append(len(earlier))
        cuts = sorted({0, *ends, len(prompt)})
        return [prompt[start:end] for start, end in itertools.pairwise(cuts)]

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
