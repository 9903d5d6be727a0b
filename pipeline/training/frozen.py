"""That training leaves the base as it was: its weights' bytes before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from runtime.errors import TrainingError


def digests(base: Mapping[str, torch.nn.Parameter], model: torch.nn.Module) -> dict[str, str]:
    """sha256 of every weight of the base, as it is in memory.

    Args:
        base: the weights by name, taken before the model was adapted.
        model: the adapted model; a weight that it no longer uses is left out.
    """
    used = {id(parameter) for parameter in model.parameters()}
    return {name: _digest(parameter) for name, parameter in base.items() if id(parameter) in used}


def refuse_changed_base(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Compare two results of `digests`.

    Raises:
        TrainingError: a weight was changed or replaced.
    """
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        raise TrainingError(
            f"training changed {len(changed)} of {len(before)} weights of the base, such as "
            f'"{min(changed)}"; no adapter is written, since only its base would fit it'
        )


def _digest(parameter: torch.nn.Parameter) -> str:
    """Of the weight's bytes; of a 4-bit weight's packed numbers and the scale of each block."""
    held = hashlib.sha256(_bytes(parameter.data))
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        held.update(_bytes(state.absmax))
    return held.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().as_subclass(torch.Tensor)
    data: memoryview = plain.cpu().contiguous().view(torch.uint8).numpy().data
    return data
