"""The tokenizer's files, and which tokens begin, end and pad a text."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.errors import CheckpointError, ExportError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
OPTIONAL = ("special_tokens_map.json",)
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning of their own."""

    begin: int | None
    stop: tuple[int, ...]
    """Any of these ends an answer; at least one."""
    pad: int


def copy_tokenizer(checkpoint: Path, out: Path, vocabulary: int) -> None:
    """Copy the tokenizer and its chat template, which gets a file of its own where it had none.

    tokenizer.json is written anew in as few bytes as say the same: it is read at every load.

    Args:
        checkpoint: a Hugging Face folder with a fast tokenizer.
        out: an existing directory.
        vocabulary: rows of the embedding, one for each token id there may be.

    Raises:
        CheckpointError: a file is missing or damaged.
        ExportError: a token has no row in the embedding, or the disk refuses.
    """
    largest = max(_load(checkpoint).get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocabulary:
        raise ExportError(
            f"the tokenizer of {checkpoint} has token {largest}, but its embedding has {vocabulary} rows: "
            "they belong to different models"
        )
    template = _template(checkpoint)
    try:
        (out / TOKENIZER).write_text(_compact(_json(checkpoint, TOKENIZER, required=True)), encoding="utf-8")
        for name in (CONFIG, *OPTIONAL):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, out / name)
        if template is not None:
            (out / TEMPLATE).write_text(template, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot copy the tokenizer to {out}: {error}") from error


def read_special_tokens(checkpoint: Path) -> SpecialTokens:
    """What generation_config.json says, else config.json; the tokenizer's own end token stops as well.

    Raises:
        CheckpointError: a file is missing or damaged.
        ExportError: nothing names an end-of-text token.
    """
    settings = _json(checkpoint, "config.json", required=True)
    settings |= {
        key: value
        for key, value in _json(checkpoint, "generation_config.json", required=False).items()
        if value is not None
    }
    tokenizer = _load(checkpoint)
    names = _json(checkpoint, CONFIG, required=True)
    stop = [*_ids(settings, "eos_token_id"), *_named(tokenizer, names.get("eos_token"))]
    if not stop:
        raise ExportError(
            f"{checkpoint} does not say which token ends a text: set eos_token_id in generation_config.json"
        )
    begin = [*_ids(settings, "bos_token_id"), *_named(tokenizer, names.get("bos_token"))]
    pad = [*_ids(settings, "pad_token_id"), *_named(tokenizer, names.get("pad_token")), stop[0]]
    return SpecialTokens(begin[0] if begin else None, tuple(dict.fromkeys(stop)), pad[0])


def _compact(tokenizer: dict[str, Any]) -> str:
    """A tokenizer.json without white space, its merges as one text each where no token has a space.

    Both forms are Hugging Face's; pairs came later, for tokens with spaces, and take longer to read.
    """
    pairs = tokenizer["model"].get("merges")
    if pairs and not any(isinstance(pair, str) or " " in "".join(pair) for pair in pairs):
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in pairs]
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def _template(checkpoint: Path) -> str | None:
    """The chat template's text: its own file, or the field of tokenizer_config.json, or none."""
    file = checkpoint / TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error
    template = _json(checkpoint, CONFIG, required=True).get("chat_template")
    if isinstance(template, list):  # several, by name: one is the default
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _load(checkpoint: Path) -> Tokenizer:
    file = checkpoint / TOKENIZER
    if not file.is_file():
        raise CheckpointError(f"{checkpoint} has no tokenizer.json: save its tokenizer as a fast tokenizer")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _json(checkpoint: Path, name: str, required: bool) -> dict[str, Any]:
    file = checkpoint / name
    if not required and not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} has no {name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return value


def _ids(settings: dict[str, object], key: str) -> list[int]:
    value = settings.get(key)
    stated = value if isinstance(value, list) else [] if value is None else [value]
    ids = [entry for entry in stated if type(entry) is int and entry >= 0]
    if len(ids) != len(stated):
        raise CheckpointError(f"{key} must be a token id or a list of them, not {value!r}")
    return ids


def _named(tokenizer: Tokenizer, token: object) -> list[int]:
    """The id of a token given as text, or as the object that older tokenizer configs hold."""
    text = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return [] if found is None else [found]
