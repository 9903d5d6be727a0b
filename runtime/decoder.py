"""Token ids → logits: conversations over one ONNX Runtime session, each with a cache updated in place.

Shapes: S tokens fed at once, C the context, V the vocabulary, H the hidden size, K key/value heads,
D the head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.adapters import Adapter
from runtime.conversation import Conversation, Mark, refuse_not_finite
from runtime.errors import BundleError, InferenceError, UsageError
from runtime.pages import zeros
from runtime.session import Provider, first_line, open_session

SCORE_ROWS = 256
"""Positions whose logits `score` computes at once."""

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_KEPT = {**_FLOATS, "tensor(int8)": np.int8}


class Decoder:
    """One conversation over a model.onnx whose caches are bound as both past and present.

    Every buffer is allocated once, at the full context. The attention mask is likewise one buffer
    (1, C), ones up to the current length. One decoder is not for several threads at once; several
    decoders of one session are (`beside`).

    Attributes:
        adapter: whose factors are bound; None: the graph's own weights alone.
    """

    def __init__(
        self,
        directory: Path,
        context: int,
        vocabulary: int,
        threads: int = 2,
        provider: Provider = "cpu",
        spin: bool = True,
        packed: Path | None = None,
        parsed: Event | None = None,
    ) -> None:
        """Open model.onnx in a verified bundle, or what `runtime.packed` made of it.

        `parsed` as `open_session` takes it.

        Raises:
            UsageError: threads or provider cannot be had here.
            BundleError: the graph cannot be opened or is not the graph that this class drives.
        """
        self._start(_Model(directory, threads, provider, spin, packed, parsed), context, vocabulary, None)

    def beside(self, adapter: Adapter | None) -> Decoder:
        """An empty conversation of its own over the same session, with or without an adapter.

        Raises:
            BundleError: the graph does not take the adapter's tensors.
        """
        if adapter is not None and (unknown := sorted(adapter.values.keys() - self._model.optional)):
            raise BundleError(f"model.onnx has no inputs for the adapter {adapter.name}:", unknown)
        other = Decoder.__new__(Decoder)
        other._start(self._model, self.context, self.vocabulary, adapter)
        return other

    def another(self) -> Decoder:
        """An empty conversation of its own over the same session, with the same adapter."""
        return self.beside(self.adapter)

    def _start(self, model: _Model, context: int, vocabulary: int, adapter: Adapter | None) -> None:
        self._model = model
        self.context = context
        self.vocabulary = vocabulary
        self.provider = model.provider
        self.adapter = adapter
        self._factors = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values, model.provider)
            for name, values in (adapter.values if adapter else {}).items()
        }
        self._conversation = Conversation(context, vocabulary)
        self._mask = np.zeros((1, context), np.int64)
        self._logits = np.zeros((1, 1, vocabulary), np.float32)
        self._token = np.zeros((1, 1), np.int64)
        self._arrays = model.empty_caches(context)
        self._buffers = model.values(self._arrays)
        # Decoding binds its one token once; a chunk of another length binds its own input each time.
        self._one = self._bind(self._buffers, self._mask)
        self._many = self._bind(self._buffers, self._mask)
        self._one.bind_cpu_input("input_ids", self._token)

    @property
    def length(self) -> int:
        """Tokens in the conversation."""
        return self._conversation.length

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits (V,) after the last one.

        Raises:
            PromptError: no tokens, a token outside the vocabulary, or more than the context holds.
            InferenceError: the logits are not finite; the tokens are then not part of the conversation.
        """
        before = self._conversation.length
        ids = self._conversation.checked(tokens, before)
        total = before + ids.size
        self._mask[0, before:total] = 1
        binding = self._one
        if ids.size == 1:
            self._token[0, 0] = ids[0]
        else:
            binding = self._many
            binding.bind_cpu_input("input_ids", ids[None])
        try:
            self._run(binding)
            refuse_not_finite(self._logits)
        except BaseException:
            self._mask[0, before:total] = 0
            raise
        self._conversation.length = total
        logits: NDArray[np.float32] = self._logits[0, 0].copy()
        return logits

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (S, V) at every position of a conversation of its own; this one is left as it is.

        The head is applied by head.onnx, which reads the weights that model.onnx reads.

        Raises:
            PromptError: no tokens, a token outside the vocabulary, or more than the context.
            InferenceError: the logits are not finite.
        """
        ids = self._conversation.checked(tokens, 0)
        hidden = np.empty((1, ids.size, self._model.hidden_size), self._model.hidden_dtype)  # (1, S, H)
        binding = self._model.session.io_binding()
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, ids.size), np.int64))
        caches = self._model.values(
            self._model.empty_caches(ids.size)
        )  # a binding only points to their memory
        self._bind_values(binding, caches)
        binding.bind_output("hidden_states", "cpu", 0, hidden.dtype, hidden.shape, hidden.ctypes.data)
        self._run(binding)
        head = self._model.head()
        name = head.get_inputs()[0].name
        logits = np.empty((ids.size, self.vocabulary), np.float32)
        for at in range(0, ids.size, SCORE_ROWS):
            logits[at : at + SCORE_ROWS] = head.run(None, {name: hidden[:, at : at + SCORE_ROWS]})[0][0]
        refuse_not_finite(logits)
        return logits

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens.

        Raises:
            PromptError: the conversation is shorter than that, or the length is negative.
        """
        before = self._conversation.length
        self._conversation.rewind(length)
        self._mask[0, length:before] = 0

    def reset(self) -> None:
        """Start an empty conversation."""
        self.rewind(0)

    def layout(self, length: int) -> list[tuple[tuple[int, int, int], np.dtype[Any]]]:
        """Shape (K, length, D) and type of what `cached` gives."""
        return [((array.shape[1], length, array.shape[3]), array.dtype) for array in self._arrays.values()]

    def cached(self, length: int) -> list[NDArray[np.generic]]:
        """Keys and values (K, length, D) of the first tokens, layer by layer, as they lie on a CPU."""
        return [array[0, :, :length] for array in self._arrays.values()]

    def restore(self, values: Sequence[NDArray[np.generic]]) -> None:
        """Begin a conversation with tokens whose keys and values `cached` gave."""
        self.reset()
        length = values[0].shape[1]
        for array, value in zip(self._arrays.values(), values, strict=True):
            array[0, :, :length] = value
        self._mask[0, :length] = 1
        self._conversation.length = length

    def mark(self) -> Mark:
        """Remember this point of the conversation (`Conversation.mark`)."""
        return self._conversation.mark()

    def holds(self, mark: Mark) -> bool:
        """Whether a mark may still be rewound to (`Conversation.holds`)."""
        return self._conversation.holds(mark)

    def _run(self, binding: onnxruntime.IOBinding) -> None:
        try:
            self._model.session.run_with_iobinding(binding)
        except Exception as error:
            raise InferenceError(f"ONNX Runtime stopped: {first_line(error)}") from error

    def _bind(
        self, caches: dict[str, onnxruntime.OrtValue], mask: NDArray[np.int64]
    ) -> onnxruntime.IOBinding:
        binding = self._model.session.io_binding()
        binding.bind_cpu_input("attention_mask", mask)
        self._bind_values(binding, caches)
        binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        return binding

    def _bind_values(self, binding: onnxruntime.IOBinding, caches: dict[str, onnxruntime.OrtValue]) -> None:
        """Bind caches and the adapter's factors.

        The factors are bound, since ONNX Runtime leaves out the active adapters of RunOptions, with no more
        than a warning, when it runs with a binding.
        """
        for name, cache in caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), cache)
        for name, factor in self._factors.items():
            binding.bind_ortvalue_input(name, factor)


class _Model:
    """What all conversations over one model.onnx share. For several threads at once."""

    def __init__(
        self,
        directory: Path,
        threads: int,
        provider: Provider,
        spin: bool,
        packed: Path | None,
        parsed: Event | None,
    ) -> None:
        self._directory = directory
        self._options = (threads, provider, spin)
        self._head: onnxruntime.InferenceSession | None = None
        self._head_lock = Lock()
        self.provider = provider
        self.session = open_session(
            packed or directory / "model.onnx", *self._options, optimized=packed is not None, parsed=parsed
        )
        self.optional = {value.name for value in self.session.get_overridable_initializers()}
        inputs = {value.name: value for value in self.session.get_inputs()}
        self._caches = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        if set(inputs) != {"input_ids", "attention_mask", *self._caches} or not self._caches:
            raise BundleError(f"model.onnx has unexpected inputs: {', '.join(sorted(inputs))}")
        hidden = next((v for v in self.session.get_outputs() if v.name == "hidden_states"), None)
        if hidden is None or hidden.type not in _FLOATS:
            raise BundleError("model.onnx has no output hidden_states")
        self.hidden_size, self.hidden_dtype = int(hidden.shape[-1]), _FLOATS[hidden.type]
        if provider != "cpu" and any(value.type == "tensor(int8)" for value in self._caches.values()):
            raise UsageError(
                f"this bundle keeps keys and values in int8, which runs on a CPU, not on {provider}; "
                'load it with provider "cpu", or build it with export.kv_cache = "float"'
            )

    def head(self) -> onnxruntime.InferenceSession:
        """head.onnx, opened when somebody scores."""
        with self._head_lock:
            if self._head is None:
                self._head = open_session(self._directory / "head.onnx", *self._options)
            return self._head

    def empty_caches(self, length: int) -> dict[str, NDArray[np.generic]]:
        """Caches (1, K, length, D), each layer's keys and values; a page costs nothing until written."""
        caches = {}
        for name, value in self._caches.items():
            if value.type not in _KEPT:
                raise BundleError(
                    f"model.onnx keeps {name} as {value.type}; this runtime knows float, float16 and int8"
                )
            _, heads, _, size = value.shape
            caches[name] = zeros((1, heads, length, size), _KEPT[value.type])
        return caches

    def values(self, caches: dict[str, NDArray[np.generic]]) -> dict[str, onnxruntime.OrtValue]:
        """Caches where the model runs: on a CPU, the arrays' own memory."""
        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, self.provider)
            for name, array in caches.items()
        }
