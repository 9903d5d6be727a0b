"""Through a model and back, layer by layer: what every matrix reads, and how much its output matters.

What a rounded matrix costs is the divergence of the next token's distribution. To second order that is half
the mean of (gᵀ dW x)², x the matrix's input and g the gradient, in its output, of the log-probability of a
token drawn from the model itself (the Fisher information). A token whose output nothing depends on counts
for nothing so, however loud its activations are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evidence.form import Conversation, alike, padded
from pipeline.rounding.layers import SITES, Layer, Layers, Site
from pipeline.stage import Progress
from runtime.errors import CheckpointError

MOST_TOKENS = 1024
"""Of conversations that run side by side."""
HISTORY = 512
"""Tokens of conversations behind one another that are run as one; the second half of them counts."""
ONE_OF = 4
"""Of so many conversations one says what a rounding costs, and the others how to round."""
ROWS = 256
"""Positions whose probabilities are in memory at once."""
_TINY = 1e-30


@dataclass(frozen=True)
class Part:
    """What is known of a module's matrix [N, K].

    Attributes:
        weight: [N, K].
        inputs: [K, K], the sum of x xᵀ over the tokens to round by, each times the module's |g|².
        apart: [K, K], the same over the tokens to judge by.
        rows: [N], each output's share of the sum of all g²; they sum to 1.
    """

    weight: NDArray[np.float32]
    inputs: NDArray[np.float32]
    apart: NDArray[np.float32]
    rows: NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """A matrix of a layer.

    Attributes:
        name: as the graph stores it.
        parts: of the modules that are stacked in it. They read the same, but what is loud in one's output
            need not be in another's.
    """

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Batch:
    """Conversations side by side.

    Attributes:
        ids: (B, S) token ids, padded behind.
        counted: (B, S), whether the prediction at a position is one of those that count.
        apart: whether they are to judge by, not to round by: what was fitted to a sample looks better on it.
    """

    ids: torch.Tensor
    counted: torch.Tensor
    apart: bool


@dataclass(frozen=True)
class Ends:
    """The two ends of a model, where its vocabulary is.

    Attributes:
        hidden: (P, hidden), what the head reads at the positions to judge by.
        inputs: [hidden, hidden], the sum of x xᵀ over those to round by.
        embedding: [V], how much a row's error matters: the sum of |g|² wherever its token was read, over
            the width and the number of all positions.
    """

    hidden: torch.Tensor
    inputs: NDArray[np.float64]
    embedding: NDArray[np.float64]


def batches(conversations: Sequence[Conversation]) -> list[Batch]:
    """Conversations in groups of like length; every `ONE_OF`-th is to judge by.

    Of both kinds every second one is run behind others, as what is said late in a drive is read: what was
    fitted to beginnings alone may be far off where the first token is another.
    """
    found = []
    for apart in (False, True):
        chosen = [one for at, one in enumerate(conversations) if (at % ONE_OF == 0) == apart]
        found += _alike([*chosen[::2], *_histories(chosen[1::2])], apart)
    return found


def _histories(conversations: Sequence[Conversation]) -> list[Conversation]:
    tokens = [token for conversation in conversations for token in conversation.tokens]
    parts = [tuple(tokens[at : at + HISTORY]) for at in range(0, len(tokens), HISTORY)]
    return [Conversation("", part, len(part) // 2 + 1) for part in parts if len(part) > 1]


def _alike(conversations: Sequence[Conversation], apart: bool) -> list[Batch]:
    found = []
    for group in alike([len(conversation.tokens) for conversation in conversations], MOST_TOKENS):
        members = [conversations[index] for index in group]
        ids, _ = padded(members)
        at = np.arange(ids.shape[1])
        ends = np.array([(one.start - 1, len(one.tokens) - 1) for one in members])
        counted = (at >= ends[:, :1]) & (at < ends[:, 1:])
        found.append(Batch(torch.from_numpy(ids), torch.from_numpy(counted), apart))
    return found


def sweep(
    layers: Layers, side_by_side: Sequence[Batch], seed: int, scratch: Path, progress: Progress
) -> Iterator[Seen | Ends]:
    """Every matrix of every layer, from the last layer to the first, then the ends; memory holds one layer.

    Args:
        layers: the checkpoint.
        side_by_side: what to run through it.
        seed: of the tokens that are drawn.
        scratch: a directory; what each layer reads lies there until the way back.
        progress: hears of each layer, both ways.

    Raises:
        CheckpointError: a tensor cannot be read, or a number is not finite.
    """
    count = layers.architecture.layers
    streams = layers.embedded([batch.ids for batch in side_by_side])
    for number in range(count):
        progress("reading", number, 2 * count)
        torch.save(streams, scratch / f"{number}.pt")
        layer = layers.layer(number)
        with torch.no_grad():
            streams = [layer.run(stream) for stream in streams]
    read, gradients = _drawn(layers, streams, side_by_side, seed)
    for number in reversed(range(count)):
        progress("weighing", 2 * count - number - 1, 2 * count)
        streams = torch.load(scratch / f"{number}.pt")
        (scratch / f"{number}.pt").unlink()
        layer = layers.layer(number)
        watched = [_Watched(layer, site) for site in SITES]
        gradients = [
            _back(layer, watched, batch, stream, gradient)
            for batch, stream, gradient in zip(side_by_side, streams, gradients, strict=True)
        ]
        for each in watched:
            yield each.seen()
        del layer, watched, each  # the widest matrices would outlive the vocabulary's
    rows = torch.zeros(layers.architecture.vocabulary, dtype=torch.float64)
    for batch, gradient in zip(side_by_side, gradients, strict=True):
        rows.index_add_(0, batch.ids.flatten(), gradient.double().square().mean(dim=-1).flatten())
    del streams, gradients, batch, gradient
    rows /= sum(len(hidden) for hidden in read)
    given = {
        apart: torch.cat([x for x, batch in zip(read, side_by_side, strict=True) if batch.apart == apart])
        for apart in (False, True)
    }
    yield Ends(given[True], (given[False].T @ given[False]).double().numpy(), rows.numpy())


def _drawn(
    layers: Layers, streams: Sequence[torch.Tensor], side_by_side: Sequence[Batch], seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each batch what the head reads (P, hidden), and the stream's gradient in a draw's log-probability.

    In the logits that gradient is 1 at the token drawn less the probabilities.
    """
    head, generator = layers.head(), torch.Generator().manual_seed(seed)
    read, gradients = [], []
    for stream, batch in zip(streams, side_by_side, strict=True):
        behind = stream.clone().requires_grad_()
        hidden = layers.normalized(behind)
        upstream = torch.zeros_like(stream)
        with torch.no_grad():
            counted = hidden[batch.counted]
            if not torch.isfinite(counted).all():
                raise CheckpointError("the checkpoint puts out NaN or infinity; it is not sound")
            parts = []
            for at in range(0, len(counted), ROWS):
                rows = counted[at : at + ROWS]
                probabilities = torch.softmax(rows @ head.T, dim=-1)
                drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
                parts.append(head[drawn] - probabilities @ head)
            upstream[batch.counted] = torch.cat(parts)
            read.append(counted)
        hidden.backward(upstream)  # type: ignore[no-untyped-call]
        assert behind.grad is not None
        gradients.append(behind.grad)
    return read, gradients


class _Watched:
    """A site of a layer, while conversations are run through it and back."""

    def __init__(self, layer: Layer, site: Site) -> None:
        self._name = layer.full_name(site)
        self._modules = layer.linears(site)
        columns = self._modules[0].in_features
        self._inputs = [torch.zeros(columns, columns) for _ in self._modules]
        self._apart = [torch.zeros(columns, columns) for _ in self._modules]
        self._rows = [torch.zeros(module.out_features, dtype=torch.float64) for module in self._modules]
        self._x = torch.zeros(0)
        self._loud = [torch.zeros(0) for _ in self._modules]
        self._hooks = [self._modules[0].register_forward_pre_hook(self._read)]
        self._hooks += [
            module.register_full_backward_hook(partial(self._wrote, number))
            for number, module in enumerate(self._modules)
        ]

    def _read(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._x = args[0].detach().flatten(0, 1)

    def _wrote(
        self,
        number: int,
        module: torch.nn.Module,
        into: tuple[torch.Tensor, ...],
        out: tuple[torch.Tensor, ...],
    ) -> None:
        squares = out[0].detach().flatten(0, 1).square()
        self._rows[number] += squares.sum(dim=0)
        self._loud[number] = squares.sum(dim=1)

    def add(self, apart: bool) -> None:
        """Count what one batch read, after it was run back."""
        for loud, seen in zip(self._loud, self._apart if apart else self._inputs, strict=True):
            weighed = self._x * loud.sqrt()[:, None]
            seen.addmm_(weighed.T, weighed)

    def seen(self) -> Seen:
        """What all batches have shown; the site is watched no longer."""
        for hook in self._hooks:
            hook.remove()
        parts = []
        for module, inputs, apart, rows in zip(
            self._modules, self._inputs, self._apart, self._rows, strict=True
        ):
            shares = rows / rows.sum().clamp_min(_TINY)
            weight = module.weight.detach().clone().numpy()
            parts.append(Part(weight, inputs.numpy(), apart.numpy(), shares.numpy()))
        return Seen(self._name, tuple(parts))


def _back(
    layer: Layer, watched: Sequence[_Watched], batch: Batch, stream: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """One batch through the layer and back: the gradient behind it → that before it."""
    before = stream.clone().requires_grad_()
    layer.run(before).backward(gradient)  # type: ignore[no-untyped-call]
    for each in watched:
        each.add(batch.apart)
    assert before.grad is not None
    return before.grad
