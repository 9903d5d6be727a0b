"""Both forms of a config's tasks on disk, before anything is trained: bundles with the shapes to come.

A merged checkpoint has the shapes of its base, and no speed or size depends on a value. So the base stands
for every merged task, and random factors of the configured ranks and layers for every adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.adapter import Factors, write_adapter
from export.branches import Switchable
from export.bundle import Description, answer_form, package
from export.checkpoint import export_checkpoint
from pipeline.adapter_config import AdapterConfig
from pipeline.advise.advice import TaskAdapter
from pipeline.config import Config, Train
from pipeline.fingerprint import fingerprint
from pipeline.provenance import file_digest
from pipeline.stage import Progress
from pipeline.training.targets import ALL_LINEAR
from runtime.errors import ConfigError
from runtime.manifest import Lineage
from runtime.sites import ADAPTER_SUFFIX, Belonging, Sites, read_sites, record_name


@dataclass(frozen=True)
class Bundles:
    """What is measured.

    Attributes:
        merged: a bundle of one task.
        merged_bytes: of it on disk.
        switchable: the bundle of all tasks.
        switchable_bytes: of it on disk.
        single: the same with the largest adapter alone.
        adapters: of every task, in the config's order.
    """

    merged: Path
    merged_bytes: int
    switchable: Path
    switchable_bytes: int
    single: Path
    adapters: tuple[TaskAdapter, ...]

    @property
    def largest(self) -> TaskAdapter:
        """The adapter that costs most: an update, and a token."""
        return _largest(self.adapters)


def write_bundles(
    config: Config, base: Path, measured: Mapping[str, Path], out: Path, progress: Progress
) -> Bundles:
    """Write the bundles below an empty directory.

    Args:
        config: with at least one task; of each, ranks and layers are read.
        base: its checkpoint.
        measured: what the stages `calibration` and `rounding` made of the base, as the config's export reads.
        out: an existing, empty directory.
        progress: told how it goes.

    Raises:
        ConfigError: a task adapts no weight of the base.
        CheckpointError: the base cannot be read.
        ExportError: the base cannot be expressed as a graph, or the disk refuses.
    """
    export, plain, switchable = config.export, out / "plain", out / "switchable"
    for folder in (plain, switchable):
        folder.mkdir()
    progress("reading the base's digests", 0, 0)
    known = fingerprint(base)
    digests = dict(known.tensors)
    most = max(export.most_rank, *(config.of_task(task).train.highest_rank for task in config.tasks))
    for folder, adapted in ((plain, None), (switchable, Switchable(most, digests))):
        shape = (export.precision, export.weights_per_scale, export.context)
        calibration, rounded = measured.get("calibration"), measured.get("rounding")
        export_checkpoint(base, folder, *shape, progress, calibration, adapted, rounded, export.kv_cache)
    sites = read_sites(switchable)
    progress("packaging bundles", 0, 0)
    tokenizer, template = (file_digest(plain / name) for name in ("tokenizer.json", "chat_template.jinja"))
    belongs = Belonging(digests, tokenizer, template)
    adapters = [_adapter(task.name, config.of_task(task).train, sites, belongs, out) for task in config.tasks]
    description = Description(
        name=config.name,
        precision=export.precision,
        exporter="graph",
        lineage=Lineage(known.digest, None, None, {}, {}),
        system=config.data.system,
        form=answer_form(plain),
    )
    files = [out / f"{adapter.name}{ADAPTER_SUFFIX}" for adapter in adapters]
    largest = out / f"{_largest(adapters).name}{ADAPTER_SUFFIX}"

    def packaged(name: str, exported: Path, given: Sequence[Path] = ()) -> Path:
        package(exported, out / name, config.data.tools, description, given)
        return out / name

    merged, all_tasks = packaged("merged", plain), packaged("tasks", switchable, files)
    return Bundles(
        merged=merged,
        merged_bytes=_size(merged),
        switchable=all_tasks,
        switchable_bytes=_size(all_tasks),
        single=packaged("single", switchable, [largest]) if len(files) > 1 else all_tasks,
        adapters=tuple(adapters),
    )


def _largest(adapters: Sequence[TaskAdapter]) -> TaskAdapter:
    """The first of those with the most parameters."""
    return max(adapters, key=lambda adapter: adapter.parameters)


def _adapter(name: str, train: Train, sites: Sites, belongs: Belonging, out: Path) -> TaskAdapter:
    ranks = _ranks(train, sites)
    if not ranks:
        layers = sorted({tensor.removesuffix(".weight").rpartition(".")[2] for tensor in _tensors(sites)})
        raise ConfigError(
            f'the task "{name}" adapts no layer of this base; target_modules may name {", ".join(layers)}'
        )
    # Each its own: the runtime takes equal files for one adapter, with one conversation.
    random = np.random.default_rng(list(name.encode()))

    def matrix(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return random.normal(0, 0.01, (rows, columns)).astype(np.float32)

    updates = [
        Factors(part.tensor, matrix(rank, site.columns), matrix(part.rows, rank))
        for site in sites.sites
        for part in site.parts
        if (rank := ranks.get(part.tensor))
    ]
    record = write_adapter(name, updates, sites, belongs, sites.dtype, out)  # as a build stores it
    return TaskAdapter(
        name,
        record.rank,
        sum(update.a.size + update.b.size for update in updates),
        record.size + (out / record_name(f"{name}{ADAPTER_SUFFIX}")).stat().st_size,
    )


def _ranks(train: Train, sites: Sites) -> Mapping[str, int]:
    """Weight → rank of its update, by PEFT's rules; with AdaLoRA the rank that is left on average."""
    targets = train.target_modules
    everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    chosen = AdapterConfig(
        peft_type="LORA",
        r=train.r,
        lora_alpha=train.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        rank_pattern=dict(train.rank_pattern),
    )
    layers = {tensor: tensor.removesuffix(".weight") for tensor in _tensors(sites)}
    return {
        tensor: chosen.rank(layer) for tensor, layer in layers.items() if everything or chosen.targets(layer)
    }


def _tensors(sites: Sites) -> list[str]:
    return [part.tensor for site in sites.sites for part in site.parts]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
