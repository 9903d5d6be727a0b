"""Token ids → logits: one ONNX Runtime session over a key/value cache that is updated in place.

Shapes: S tokens fed at once, C the context, V the vocabulary, H the hidden size, K key/value heads,
D the head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.conversation import Conversation, Mark, refuse_not_finite
from runtime.errors import BundleError, InferenceError
from runtime.session import Provider, first_line, open_session

SCORE_ROWS = 256
"""Positions whose logits `score` computes at once."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """One conversation over a model.onnx whose caches are bound as both past and present.

    Every buffer is allocated once, at the full context. The attention mask is likewise one buffer
    (1, C), ones up to the current length. Not for use by several threads at once.
    """

    def __init__(
        self,
        directory: Path,
        context: int,
        vocabulary: int,
        threads: int = 2,
        provider: Provider = "cpu",
        spin: bool = True,
    ) -> None:
        """Open model.onnx in a verified bundle.

        Raises:
            UsageError: threads or provider cannot be had here.
            BundleError: the graph cannot be opened or is not the graph that this class drives.
        """
        self._directory = directory
        self._options = (threads, provider, spin)
        self._session = open_session(directory / "model.onnx", *self._options)
        self._head: onnxruntime.InferenceSession | None = None
        self.context = context
        self.vocabulary = vocabulary
        self.provider = provider
        self._conversation = Conversation(context, vocabulary)
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._caches = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        if set(inputs) != {"input_ids", "attention_mask", *self._caches} or not self._caches:
            raise BundleError(f"model.onnx has unexpected inputs: {', '.join(sorted(inputs))}")
        hidden = next((v for v in self._session.get_outputs() if v.name == "hidden_states"), None)
        if hidden is None or hidden.type not in _DTYPES:
            raise BundleError("model.onnx has no output hidden_states")
        self._hidden_size, self._hidden_dtype = int(hidden.shape[-1]), _DTYPES[hidden.type]
        self._mask = np.zeros((1, context), np.int64)
        self._logits = np.zeros((1, 1, vocabulary), np.float32)
        self._token = np.zeros((1, 1), np.int64)
        self._buffers = self._empty_caches(context)
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
        hidden = np.empty((1, ids.size, self._hidden_size), self._hidden_dtype)  # (1, S, H)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, ids.size), np.int64))
        self._bind_caches(binding, self._empty_caches(ids.size))
        binding.bind_output("hidden_states", "cpu", 0, hidden.dtype, hidden.shape, hidden.ctypes.data)
        self._run(binding)
        if self._head is None:
            self._head = open_session(self._directory / "head.onnx", *self._options)
        name = self._head.get_inputs()[0].name
        logits = np.empty((ids.size, self.vocabulary), np.float32)
        for at in range(0, ids.size, SCORE_ROWS):
            logits[at : at + SCORE_ROWS] = self._head.run(None, {name: hidden[:, at : at + SCORE_ROWS]})[0][0]
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

    def mark(self) -> Mark:
        """Remember this point of the conversation (`Conversation.mark`)."""
        return self._conversation.mark()

    def holds(self, mark: Mark) -> bool:
        """Whether a mark may still be rewound to (`Conversation.holds`)."""
        return self._conversation.holds(mark)

    def _run(self, binding: onnxruntime.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise InferenceError(f"ONNX Runtime stopped: {first_line(error)}") from error

    def _empty_caches(self, length: int) -> dict[str, onnxruntime.OrtValue]:
        """Caches (1, K, length, D), each layer's keys and values; zero pages cost nothing until written."""
        caches = {}
        for name, value in self._caches.items():
            if value.type not in _DTYPES:
                raise BundleError(
                    f"model.onnx keeps {name} as {value.type}; this runtime knows float and float16"
                )
            _, heads, _, size = value.shape
            zeros = np.zeros((1, heads, length, size), _DTYPES[value.type])
            caches[name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self.provider)
        return caches

    def _bind(
        self, caches: dict[str, onnxruntime.OrtValue], mask: NDArray[np.int64]
    ) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        binding.bind_cpu_input("attention_mask", mask)
        self._bind_caches(binding, caches)
        binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        return binding

    def _bind_caches(self, binding: onnxruntime.IOBinding, caches: dict[str, onnxruntime.OrtValue]) -> None:
        for name, cache in caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), cache)
