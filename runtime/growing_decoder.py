"""Token ids → logits for graphs whose cache grows: the form that general exporters write.

As `runtime.decoder`, with these differences in the graph: the past is exactly as long as the tokens
before, the present is a new tensor, `position_ids` may be an input, and `logits` (1, S, V) are of every
position. Each step copies the cache, which is why our own graph is not of this kind.

Shapes: S tokens fed at once, P tokens before, V the vocabulary, K key/value heads, D the head size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.conversation import Conversation, Mark, refuse_not_finite
from runtime.errors import BundleError, InferenceError
from runtime.session import Provider, first_line, open_session

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PAST, _PRESENT = "past_key_values.", "present."

Caches = dict[str, onnxruntime.OrtValue]
"""Input name → keys or values (1, K, P, D) of one layer."""


class GrowingDecoder:
    """One conversation over a model.onnx that returns a new, longer cache each time."""

    def __init__(
        self,
        directory: Path,
        context: int,
        vocabulary: int,
        threads: int = 2,
        provider: Provider = "cpu",
        spin: bool = True,
        parsed: Event | None = None,
    ) -> None:
        """Open model.onnx in a verified bundle; `parsed` as `open_session` takes it.

        Raises:
            UsageError: threads or provider cannot be had here.
            BundleError: the graph cannot be opened or is not the graph that this class drives.
        """
        self._session = open_session(directory / "model.onnx", threads, provider, spin, parsed=parsed)
        self.context = context
        self.vocabulary = vocabulary
        self.provider = provider
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._empty: Caches = {}
        for name, value in inputs.items():
            if name.startswith(_PAST) and value.type in _DTYPES:
                zeros = np.zeros((1, value.shape[1], 0, value.shape[3]), _DTYPES[value.type])
                self._empty[name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
        others = set(inputs) - set(self._empty) - {"position_ids"}
        if others != {"input_ids", "attention_mask"} or not self._empty:
            raise BundleError(f"model.onnx has unexpected inputs: {', '.join(sorted(inputs))}")
        logits = next((v for v in self._session.get_outputs() if v.name == "logits"), None)
        if logits is None or logits.shape[1] == 1:
            raise BundleError(
                "model.onnx gives logits of only the last position; package it as exporter graph"
            )
        self._has_positions = "position_ids" in inputs
        self._outputs = ["logits", *(name.replace(_PAST, _PRESENT) for name in self._empty)]
        self._start()

    def another(self) -> GrowingDecoder:
        """An empty conversation of its own over the same session."""
        other = copy.copy(self)
        other._start()
        return other

    def _start(self) -> None:
        self._conversation = Conversation(self.context, self.vocabulary)
        self._caches = self._empty

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
        logits, caches = self._run(ids, before, self._caches)
        refuse_not_finite(logits[-1])
        self._caches = caches
        self._conversation.length = before + ids.size
        last: NDArray[np.float32] = logits[-1].copy()
        return last

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (S, V) at every position of a conversation of its own; this one is left as it is.

        Raises:
            PromptError: no tokens, a token outside the vocabulary, or more than the context.
            InferenceError: the logits are not finite.
        """
        logits, _ = self._run(self._conversation.checked(tokens, 0), 0, self._empty)
        refuse_not_finite(logits)
        return logits

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens.

        Raises:
            PromptError: the conversation is shorter than that, or the length is negative.
        """
        if length == self._conversation.length:
            return
        self._conversation.rewind(length)
        self._caches = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(cache.numpy()[:, :, :length].copy())
            for name, cache in self._caches.items()
        }

    def reset(self) -> None:
        """Start an empty conversation."""
        self.rewind(0)

    def layout(self, length: int) -> list[tuple[tuple[int, int, int], np.dtype[Any]]]:
        """As `Decoder.layout`."""
        shapes = [(cache.shape(), cache.numpy().dtype) for cache in self._empty.values()]
        return [((shape[1], length, shape[3]), dtype) for shape, dtype in shapes]

    def cached(self, length: int) -> list[NDArray[np.generic]]:
        """As `Decoder.cached`."""
        return [cache.numpy()[0, :, :length] for cache in self._caches.values()]

    def restore(self, values: Sequence[NDArray[np.generic]]) -> None:
        """As `Decoder.restore`."""
        self.reset()
        self._caches = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value[None]))
            for name, value in zip(self._caches, values, strict=True)
        }
        self._conversation.length = values[0].shape[1]

    def mark(self) -> Mark:
        """Remember this point of the conversation (`Conversation.mark`)."""
        return self._conversation.mark()

    def holds(self, mark: Mark) -> bool:
        """Whether a mark may still be rewound to (`Conversation.holds`)."""
        return self._conversation.holds(mark)

    def _run(self, ids: NDArray[np.int64], before: int, caches: Caches) -> tuple[NDArray[np.float32], Caches]:
        """Logits (S, V) of tokens behind a cache, and the longer cache."""
        total = before + ids.size
        small = {"input_ids": ids[None], "attention_mask": np.ones((1, total), np.int64)}
        if self._has_positions:
            small["position_ids"] = np.arange(before, total, dtype=np.int64)[None]
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in small.items()}
        try:
            logits, *presents = self._session.run_with_ort_values(self._outputs, {**feeds, **caches})
        except Exception as error:
            raise InferenceError(f"ONNX Runtime stopped: {first_line(error)}") from error
        found: NDArray[np.float32] = logits.numpy()[0].astype(np.float32, copy=False)
        return found, dict(zip(caches, presents, strict=True))
