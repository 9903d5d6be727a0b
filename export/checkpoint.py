"""A checkpoint → everything a bundle needs of it: graphs, weights, tokenizer, genai_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.architecture import read_architecture, read_config
from export.branches import Switchable
from export.calibration import Calibration
from export.genai import Decoder, write_genai_config
from export.graph import Precision, Progress, write_graph
from export.kv_cache import KvCache
from export.rounded import Rounded
from export.tokenizer import copy_tokenizer, read_special_tokens
from runtime.errors import ExportError


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    precision: Precision,
    block_size: int,
    context: int,
    progress: Progress,
    calibration: Path | None = None,
    switchable: Switchable | None = None,
    rounded: Path | None = None,
    kv_cache: KvCache = "float",
) -> Mapping[str, int | str]:
    """Export a supported checkpoint into an empty directory.

    Args:
        checkpoint: a Hugging Face folder with safetensors and a fast tokenizer.
        out: an existing, empty directory.
        precision: fp16 is of weights and activations; int8 and int4 of weights.
        block_size: most weights that share a scale (int8, int4).
        context: longest sequence in tokens.
        progress: hears what is done, how much of it, and of how much.
        calibration: a folder that `export.calibration` describes, for an int8 that rounds activations as a
            whole where that is much faster, and for caches in int8.
        switchable: with it, the graph takes adapters, and adapter_sites.json says where.
        rounded: a folder that `export.rounded` describes, for an int8 or int4 of which every matrix was
            rounded with a view to what it is multiplied by.
        kv_cache: what keys and values are kept in.

    Returns:
        What the export's record says of itself; sizes in bytes.

    Raises:
        CheckpointError: the checkpoint is damaged or incomplete.
        ExportError: the checkpoint cannot be expressed, `out` holds something, or the disk refuses.
    """
    if any(out.iterdir()):
        raise ExportError(f"{out} is not empty: export into a new directory")
    architecture = read_architecture(checkpoint)
    tokens = read_special_tokens(checkpoint)
    copy_tokenizer(checkpoint, out, architecture.vocabulary)
    decoder = Decoder(
        model_type=str(read_config(checkpoint).get("model_type")),
        context=context,
        vocabulary=architecture.vocabulary,
        layers=architecture.layers,
        hidden=architecture.hidden,
        heads=architecture.heads,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        shared_cache=True,
        position_ids=False,
    )
    write_genai_config(decoder, tokens, out)
    measured = None if calibration is None else Calibration(calibration)
    matrices = None if rounded is None else Rounded(rounded)
    write_graph(
        checkpoint, out, precision, block_size, context, progress, measured, switchable, matrices, kv_cache
    )
    return {
        "architecture": architecture.name,
        "precision": precision,
        "graph_bytes": (out / "model.onnx").stat().st_size,
        "weight_bytes": (out / "model.onnx.data").stat().st_size,
    }
