"""What base, adapter and merge compute: which of them are one function, and what B A alone is.

In torch, float32, on rows of the validation split, one model at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.utils.flop_counter import FlopCounterMode

from pipeline.claims import guide
from pipeline.claims.finding import Finding, exactly, measured
from pipeline.claims.quality import perplexity_ratio
from pipeline.claims.trainee import Lora, Losses, conversation_losses, load, lora_config, with_lora
from pipeline.data.packing import Row
from pipeline.evidence.report.figures import milliseconds, number, times
from pipeline.quiet import quiet_transformers
from pipeline.training.batches import collate
from runtime.errors import CheckpointError

ROWS = 8
"""Of the validation split: some forty conversations of the default model."""

OTHER = "other"
"""A second adapter, whose B is zero: switched to, the model is the base."""

Logits = Sequence[torch.Tensor]
"""Of each row: (S, V) at its supervised positions."""


@dataclass(frozen=True)
class Products:
    """Of one forward pass over one row."""

    linear: int
    """Products with a weight or a factor."""
    operations: int
    """Floating-point operations, attention included."""


@dataclass(frozen=True)
class Functions:
    """What was found; differences are the largest of all logits.

    Attributes:
        fresh: adapters with B zero against the base.
        switched: to another adapter against the base, and back against the adapter.
        switch_ms: time of one switch.
        merged: against unmerged, over the largest logit.
        layers: linear layers of the base.
        adapted: those that have an update.
        merged_products: counted.
        unmerged_products: counted.
        unmerged_losses: of base and adapter.
        alone_losses: with every adapted weight of the base taken away.
    """

    fresh: float
    switched: float
    switch_ms: float
    merged: float
    layers: int
    adapted: int
    merged_products: Products
    unmerged_products: Products
    unmerged_losses: Losses
    alone_losses: Losses


@torch.no_grad()
def compare_functions(base: Path, adapter: Path, merged: Path, lora: Lora, rows: Sequence[Row]) -> Functions:
    """Run every form on the same rows.

    Args:
        base: the base checkpoint.
        adapter: its adapter.
        merged: the checkpoint of both.
        lora: of the adapters that are fresh.
        rows: of which the first `ROWS` are taken.

    Raises:
        CheckpointError: a checkpoint or the adapter cannot be loaded.
    """
    rows = rows[:ROWS]
    with quiet_transformers():
        plain = load(base, torch.float32).train(False)
        layers = sum(isinstance(module, torch.nn.Linear) for module in plain.modules())
        of_base = _logits(plain, rows)
        fresh = _difference(_logits(with_lora(plain, lora).train(False), rows), of_base)
        del plain
        unmerged = _unmerged(base, adapter)
        of_unmerged = _logits(unmerged, rows)
        unmerged.add_adapter(OTHER, lora_config(lora))
        started = time.perf_counter()
        unmerged.set_adapter(OTHER)
        switch_ms = (time.perf_counter() - started) * 1000
        there = _difference(_logits(unmerged, rows), of_base)
        unmerged.set_adapter("default")
        back = _difference(_logits(unmerged, rows), of_unmerged)
        unmerged.delete_adapter(OTHER)
        losses, products = conversation_losses(unmerged, rows, "cpu"), _products(unmerged, rows[0])
        adapted = _remove_base(unmerged)
        alone = conversation_losses(unmerged, rows, "cpu")
        del unmerged
        whole = load(merged, torch.float32).train(False)
        of_merged = _logits(whole, rows)
        return Functions(
            fresh=fresh,
            switched=max(there, back),
            switch_ms=switch_ms,
            merged=_difference(of_merged, of_unmerged) / max(one.abs().max().item() for one in of_unmerged),
            layers=layers,
            adapted=adapted,
            merged_products=_products(whole, rows[0]),
            unmerged_products=products,
            unmerged_losses=losses,
            alone_losses=alone,
        )


def _unmerged(base: Path, adapter: Path) -> PeftModel:
    try:
        model: PeftModel = PeftModel.from_pretrained(load(base, torch.float32), str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {base} with the adapter {adapter}: {error}") from error
    return model.train(False)


def _logits(model: torch.nn.Module, rows: Sequence[Row]) -> Logits:
    found = []
    for row in rows:
        batch = collate([row])
        del batch["labels"]
        found.append(model(**batch, use_cache=False).logits[0])
    return found


def _difference(first: Logits, second: Logits) -> float:
    return max((one - other).abs().max().item() for one, other in zip(first, second, strict=True))


def _products(model: torch.nn.Module, row: Row) -> Products:
    """Count what one forward pass multiplies."""
    calls: list[torch.nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: calls.append(module))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            _logits(model, [row])
    finally:
        for hook in hooks:
            hook.remove()
    return Products(len(calls), counter.get_total_flops())


def _remove_base(model: torch.nn.Module) -> int:
    """Set W0 (and its bias) of every adapted weight to zero, so that B A is alone; how many there are."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        for parameter in layer.get_base_layer().parameters():
            parameter.zero_()
    return len(layers)


def function_findings(found: Functions) -> list[Finding]:
    """What the guide says of what is computed."""
    merged, unmerged = found.merged_products.linear, found.unmerged_products.linear
    other = found.layers - found.adapted
    operations = found.unmerged_products.operations / found.merged_products.operations
    passes = (
        f"counted in one forward pass: {unmerged} products unmerged and {merged} merged, for {found.adapted} "
        f"weights that are adapted and {other} not"
    )
    return [
        measured(
            guide.STARTS_AS_BASE,
            exactly(found.fresh),
            "largest logit difference to the base; B begins at zero, which the guide does not say",
        ),
        measured(
            guide.MERGED_FUNCTION,
            exactly(found.merged),
            "largest logit difference over the largest logit, computed in float32; up to 10⁻⁴ is rounding, "
            "which a merged checkpoint kept in half precision exceeds",
        ),
        measured(guide.MERGED_PRODUCTS, exactly(merged / found.layers), passes),
        measured(
            guide.UNMERGED_PRODUCTS,
            exactly((unmerged - other) / found.adapted),
            f"{passes}; {times(operations)} the operations, attention and head included",
        ),
        measured(
            guide.SWITCHING,
            exactly(found.switched),
            "largest logit difference: at an adapter that changes nothing, to the base, and back again, to "
            f"the model before; a switch took {milliseconds(found.switch_ms)}",
        ),
        measured(
            guide.ALONE_HERE,
            perplexity_ratio(found.alone_losses, found.unmerged_losses),
            "perplexity of the answers with W0 of the adapted weights taken away over that of the model: "
            f"{_nats(found.alone_losses)} and {_nats(found.unmerged_losses)} nats a token",
        ),
    ]


def _nats(losses: Losses) -> str:
    return number(losses.mean)
