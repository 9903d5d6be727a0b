"""Which layers of a base a config means; what it means by mistake is refused with the nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator

import torch
from transformers import PreTrainedModel

from pipeline.config import Train
from runtime.errors import ConfigError

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head."""


def refuse_wrong_targets(settings: Train, model: PreTrainedModel) -> None:
    """Check every name and pattern of a config against the layers of a base.

    Args:
        settings: its `target_modules`, `rank_pattern`, `alpha_pattern` and `modules_to_save` are read.
        model: the base, not adapted yet.

    Raises:
        ConfigError: a name or pattern matches nothing, or an update is asked for beside what is no linear
            layer of a block (norms, the embedding, the head, biases); lists all of them.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    targeted = [name for name in linear if _targets(settings.target_modules, name)]
    problems = [
        *_wrong_targets(settings.target_modules, linear, model),
        *_wrong_patterns("rank_pattern", settings.rank_pattern, targeted),
        *_wrong_patterns("alpha_pattern", settings.alpha_pattern, targeted),
        *_wrong_whole_modules(settings.modules_to_save, targeted, model),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _targets(targets: tuple[str, ...] | str, layer: str) -> bool:
    """PEFT's rule: a text is a pattern for the whole name; a list has whole names or their ends."""
    if isinstance(targets, str):
        return targets.lower() == ALL_LINEAR or re.fullmatch(targets, layer) is not None
    return any(_ends_with(layer, target) for target in targets)


def _wrong_targets(
    targets: tuple[str, ...] | str, linear: list[str], model: torch.nn.Module
) -> Iterator[str]:
    others = {name for name, _ in model.named_modules() if name} - set(linear)
    if isinstance(targets, str):
        found = sorted(name for name in others if re.fullmatch(targets, name))
        if found:
            yield f'train.target_modules: the pattern "{targets}" also matches {_refused(found[0])}'
        elif not any(_targets(targets, name) for name in linear):
            yield (
                f'train.target_modules: the pattern "{targets}" matches no layer\'s whole name; the base has '
                f"{_near(targets, linear)} and others like it"
            )
        return
    parameters = {name for name, _ in model.named_parameters()}
    for target in targets:
        if any(_ends_with(name, target) for name in linear):
            continue
        found = sorted(name for name in others | parameters if _ends_with(name, target))
        if found:
            yield f'train.target_modules: "{target}" is {_refused(found[0])}'
        else:
            yield f'train.target_modules: no layer of the base is called "{target}"; {_hint(target, linear)}'


def _wrong_patterns(key: str, patterns: Iterable[str], targeted: list[str]) -> Iterator[str]:
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targeted):
            yield f'train.{key}: "{pattern}" matches none of the targeted layers; {_hint(pattern, targeted)}'


def _wrong_whole_modules(names: Iterable[str], targeted: list[str], model: torch.nn.Module) -> Iterator[str]:
    leaves = [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not any(module.children())
    ]
    for wanted in names:
        meant = {name for name in leaves if _ends_with(name, wanted)}
        taken = {name for name, _ in model.named_modules() if name.endswith(wanted)}  # PEFT asks for no dot
        if not meant:
            yield f'train.modules_to_save: no layer of the base is called "{wanted}"; {_hint(wanted, leaves)}'
        elif unmeant := sorted(taken - meant):
            yield (
                f'train.modules_to_save: "{wanted}" is also the end of "{unmeant[0]}", which would be '
                f'trained too; name it in full: "{min(meant)}"'
            )
        elif both := sorted(meant & set(targeted)):
            yield f'train.modules_to_save: "{both[0]}" is also a train.target_modules; take it out of one'


def _refused(name: str) -> str:
    return (
        f'"{name}", which is no linear layer of a block; norms, the embedding and the head are trained '
        "whole, with train.modules_to_save"
    )


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _hint(wanted: str, layers: Collection[str]) -> str:
    endings = sorted({name.rpartition(".")[2] for name in layers})
    near = difflib.get_close_matches(wanted.rpartition(".")[2], endings, n=1)
    return f'did you mean "{near[0]}"?' if near else f"the base has {', '.join(endings)}"


def _near(pattern: str, layers: list[str]) -> str:
    return f'"{difflib.get_close_matches(pattern, layers, n=1, cutoff=0.0)[0]}"'
