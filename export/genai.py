"""genai_config.json: what onnxruntime-genai needs to run a folder as it is.

Fields: https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from export.tokenizer import SpecialTokens
from runtime.errors import ExportError


@dataclass(frozen=True)
class Decoder:
    """A model.onnx, as a runtime sees it."""

    model_type: str
    """As in config.json."""
    context: int
    vocabulary: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    shared_cache: bool
    """Past and present may be one buffer as long as the context; otherwise the present is the longer."""
    position_ids: bool
    """Positions are an input; otherwise they follow from the attention mask."""


def write_genai_config(decoder: Decoder, tokens: SpecialTokens, out: Path) -> None:
    """Write genai_config.json into the directory `out`, with greedy search as the default.

    Raises:
        ExportError: the disk refuses.
    """
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if decoder.position_ids:
        inputs["position_ids"] = "position_ids"
    model: dict[str, object] = {
        "type": decoder.model_type,
        "context_length": decoder.context,
        "vocab_size": decoder.vocabulary,
        "eos_token_id": list(tokens.stop),
        "pad_token_id": tokens.pad,
        "decoder": {
            "session_options": {"provider_options": []},
            "filename": "model.onnx",
            "head_size": decoder.head_dim,
            "hidden_size": decoder.hidden,
            "num_attention_heads": decoder.heads,
            "num_hidden_layers": decoder.layers,
            "num_key_value_heads": decoder.kv_heads,
            "inputs": inputs,
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    if tokens.begin is not None:
        model["bos_token_id"] = tokens.begin
    search = {
        "do_sample": False,
        "max_length": decoder.context,
        "num_beams": 1,
        "past_present_share_buffer": decoder.shared_cache,
    }
    try:
        text = json.dumps({"model": model, "search": search}, indent=2) + "\n"
        (out / "genai_config.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {out / 'genai_config.json'}: {error}") from error
