"""GGUF → a standard checkpoint: dequantized through transformers, and the tokenizer proved the same."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.quiet import quiet_transformers
from runtime.errors import CheckpointError

SAMPLES = (
    "Set the driver's side to 22.5 degrees,  please!\n\tThen open the sunroof.",
    "把空调调到二十二度，打开左后车窗。",
    '[{"name":"media_play","arguments":{"title":"Für Elise 🎵"}}]',
    "<|im_start|>user\nhello<|im_end|>\n",
)
"""Texts that tokenizers differ on: digits, runs of spaces, scripts, symbols, special tokens."""


def convert(gguf: Path, out: Path) -> None:
    """Write config, float32 weights (they hold the dequantized values exactly) and tokenizer.

    Args:
        gguf: the file.
        out: an existing directory.

    Raises:
        CheckpointError: transformers cannot read the file, or the written tokenizer gives other ids.
    """
    try:
        # One bar of transformers' is drawn whatever it is told.
        with quiet_transformers(), redirect_stderr(StringIO()):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True
            )
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
            )
            _forget_gguf(model)
            model.save_pretrained(out)
            tokenizer.model_max_length = model.config.max_position_embeddings
            tokenizer.save_pretrained(out)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, NotImplementedError) as error:
        raise CheckpointError(f"transformers cannot read {gguf.name}: {error}") from error
    _name_for_all_versions(out, tokenizer)
    _prove_tokenizer(out, tokenizer)


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are plain numbers now; transformers would refuse to save what calls itself quantized."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)


def _name_for_all_versions(out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say in files of transformers 5 what transformers 4 reads elsewhere, and leave out this machine."""
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]  # transformers 4 would silently take 10,000
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    file = out / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    settings["clean_up_tokenization_spaces"] = False
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    if isinstance(tokenizer.chat_template, str) and not (out / "chat_template.jinja").is_file():
        (out / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def _prove_tokenizer(out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`tokenizer.json` alone, the written folder, and the GGUF's own tokenizer give the same ids."""
    alone = Tokenizer.from_file(str(out / "tokenizer.json"))
    written: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out, local_files_only=True)
    for text in SAMPLES:
        wanted = tokenizer.encode(text, add_special_tokens=False)
        for ids in (
            written.encode(text, add_special_tokens=False),
            alone.encode(text, add_special_tokens=False).ids,
        ):
            if ids != wanted:
                raise CheckpointError(
                    f"the converted tokenizer gives other ids for {text!r}: {ids}, not {wanted}; "
                    "choose a base whose tokenizer transformers converts whole"
                )
    if written.eos_token_id != tokenizer.eos_token_id:
        raise CheckpointError(
            f"the converted tokenizer ends with {written.eos_token!r}, not {tokenizer.eos_token!r}"
        )
