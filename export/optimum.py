"""The exporter for decoders that `export.graph` does not know: optimum-onnx traces the model.

It needs the `optimum` extra, in an environment of its own (it holds transformers below 4.58). The result
is float32 and has optimum's convention, with B the batch, S new tokens, P those before:

    input_ids        int64 [B, S]
    attention_mask   int64 [B, P + S]
    position_ids     int64 [B, S]     P, P + 1, …; only where the architecture reads positions
    past_key_values.N.key, .value     float32 [B, kv_heads, P, head_dim]; P is 0 at first
    logits           float32 [B, S, vocabulary]
    present.N.key, .value             as the past, longer by S

The cache is a new, longer tensor each step, never one buffer, and the head runs at every position.
genai_config.json says so, and onnxruntime-genai runs the folder.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx

from export.architecture import read_config
from export.genai import Decoder, write_genai_config
from export.tokenizer import copy_tokenizer, read_special_tokens
from export.weights import Checkpoint
from runtime.errors import ExportError

RUNS_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys of config.json that name Python to be run. Keys with "attn_implementation" do as well, without
asking, in the transformers that optimum-onnx needs (CVE-2026-4372)."""


def export_with_optimum(checkpoint: Path, out: Path, context: int) -> Mapping[str, int | str]:
    """Export a checkpoint by tracing, in float32, into an empty directory.

    Args:
        checkpoint: a Hugging Face folder with safetensors and a fast tokenizer, and without code.
        out: an existing, empty directory.
        context: longest sequence in tokens.

    Returns:
        What the export's record says of itself; sizes in bytes.

    Raises:
        CheckpointError: the checkpoint is damaged or incomplete.
        ExportError: optimum is not installed, the checkpoint would run code of its own, or optimum fails.
    """
    if any(out.iterdir()):
        raise ExportError(f"{out} is not empty: export into a new directory")
    config = read_config(checkpoint)
    _refuse_code(checkpoint, config)
    Checkpoint(checkpoint)  # checked here, so that optimum never falls back to a pickle
    trained = config.get("max_position_embeddings")
    if isinstance(trained, int) and context > trained:
        raise ExportError(f"a context of {context} tokens was asked for; the checkpoint's is {trained}")
    tokens = read_special_tokens(checkpoint)
    decoder = _trace(checkpoint, out, context)
    copy_tokenizer(checkpoint, out, decoder.vocabulary)
    write_genai_config(decoder, tokens, out)
    return {
        "architecture": decoder.model_type,
        "precision": "fp32",
        "graph_bytes": (out / "model.onnx").stat().st_size,
        "weight_bytes": sum(file.stat().st_size for file in out.glob("model.onnx?*")),
    }


def _trace(checkpoint: Path, out: Path, context: int) -> Decoder:
    """Put model.onnx, and its data where it has any, into `out`."""
    try:
        from optimum.exporters.onnx import main_export
        from transformers import AutoConfig
    except ImportError as error:
        raise ExportError(
            "the optimum exporter is not installed: pip install 'cockpit-edge[optimum]' in an environment "
            "of its own, since it needs an older transformers"
        ) from error
    with tempfile.TemporaryDirectory(dir=out) as folder, warnings.catch_warnings():
        # Tracing warns of every Python branch in transformers' own code.
        warnings.simplefilter("ignore")
        try:
            known = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
            main_export(
                str(checkpoint),
                folder,
                task="text-generation-with-past",
                library_name="transformers",
                dtype="fp32",
                local_files_only=True,
                trust_remote_code=False,
                do_validation=False,
            )
        except Exception as error:  # optimum and transformers raise what they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f"optimum cannot export {checkpoint}: {reason}") from error
        for file in sorted(Path(folder).glob("model.onnx*")):
            file.rename(out / file.name)
    names = {value.name for value in onnx.load(out / "model.onnx", load_external_data=False).graph.input}
    if not {"input_ids", "attention_mask", "past_key_values.0.key"} <= names:
        raise ExportError(
            f"optimum made a graph that no decoder loop can run; its inputs are {sorted(names)}"
        )
    heads = int(known.num_attention_heads)
    return Decoder(
        model_type=str(known.model_type),
        context=context,
        vocabulary=int(known.vocab_size),
        layers=int(known.num_hidden_layers),
        hidden=int(known.hidden_size),
        heads=heads,
        kv_heads=int(getattr(known, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(known, "head_dim", None) or known.hidden_size // heads),
        shared_cache=False,
        position_ids="position_ids" in names,
    )


def _refuse_code(checkpoint: Path, config: Mapping[str, object]) -> None:
    """The checkpoint must be data alone.

    Raises:
        ExportError: it holds Python, or its config asks for some.
    """
    asks = [key for key in config if key in RUNS_CODE or "attn_implementation" in key]
    holds = [file.name for file in sorted(checkpoint.glob("*.py"))]
    if asks or holds:
        raise ExportError(
            f"{checkpoint} would run code of its own ({', '.join(asks + holds)}), which is never done: "
            "remove it if you trust the weights without it"
        )
