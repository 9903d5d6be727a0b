"""The tokenizer's files and special tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from export.tokenizer import SpecialTokens, copy_tokenizer, read_special_tokens
from runtime.errors import CheckpointError, ExportError

IM_START, IM_END = 1, 2
"""Ids of the tiny checkpoint's special tokens; its end of text is <|im_end|>."""


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def change(file: Path, **values: object) -> None:
    """Set fields of a JSON file; None removes one."""
    settings = json.loads(file.read_text()) if file.exists() else {}
    settings |= values
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_copies_the_files(checkpoint: Path, out: Path) -> None:
    copy_tokenizer(checkpoint, out, 512)
    assert {file.name for file in out.iterdir()} >= {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    for file in out.iterdir():
        if file.name != "tokenizer.json":
            assert file.read_bytes() == (checkpoint / file.name).read_bytes()


def spaced(checkpoint: Path) -> None:
    """A token with a space, which merges of one text cannot spell."""
    file = checkpoint / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    names = settings["model"]["vocab"]
    first = max(names.values()) + 1
    names |= {" ": first, "a ": first + 1}
    settings["model"]["merges"].append(["a", " "])
    file.write_text(json.dumps(settings), encoding="utf-8")


def joined(checkpoint: Path) -> None:
    """Merges of one text, as older tokenizers have them."""
    file = checkpoint / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]
    file.write_text(json.dumps(settings), encoding="utf-8")


def unigram(checkpoint: Path) -> None:
    """No merges at all, and scores that must stay as they are."""
    model = models.Unigram([("a", -0.1), ("b", -1 / 3), ("<|im_end|>", -2.0)], 0, byte_fallback=False)
    Tokenizer(model).save(str(checkpoint / "tokenizer.json"))


@pytest.mark.parametrize("change", [lambda checkpoint: None, spaced, joined, unigram])
def test_the_tokenizer_is_the_same_in_fewer_bytes(
    checkpoint: Path, out: Path, change: Callable[[Path], None]
) -> None:
    change(checkpoint)
    copy_tokenizer(checkpoint, out, 600)
    before, after = (folder / "tokenizer.json" for folder in (checkpoint, out))
    assert Tokenizer.from_file(str(after)).to_str() == Tokenizer.from_file(str(before)).to_str()
    assert after.stat().st_size < before.stat().st_size
    assert "\n" not in after.read_text(encoding="utf-8")


TEMPLATES: list[object] = [
    "the template",
    [{"name": "rag", "template": "no"}, {"name": "default", "template": "the template"}],
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_in_the_config_gets_its_own_file(checkpoint: Path, out: Path, template: object) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    change(checkpoint / "tokenizer_config.json", chat_template=template)
    copy_tokenizer(checkpoint, out, 512)
    assert (out / "chat_template.jinja").read_text() == "the template"


def test_no_template_is_no_file(checkpoint: Path, out: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    copy_tokenizer(checkpoint, out, 512)
    assert not (out / "chat_template.jinja").exists()


def test_refuses_a_tokenizer_larger_than_the_embedding(checkpoint: Path, out: Path) -> None:
    largest = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab_size() - 1
    copy_tokenizer(checkpoint, out, largest + 1)
    with pytest.raises(ExportError, match=f"has token {largest}, but its embedding has {largest} rows"):
        copy_tokenizer(checkpoint, out, largest)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "[1", "[]"])
def test_refuses_missing_or_damaged_files(checkpoint: Path, name: str, content: str | None) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        read_special_tokens(checkpoint)


def test_special_tokens(checkpoint: Path) -> None:
    assert read_special_tokens(checkpoint) == SpecialTokens(begin=IM_START, stop=(IM_END,), pad=IM_END)


def test_generation_config_goes_before_config(checkpoint: Path) -> None:
    change(checkpoint / "config.json", eos_token_id=9)
    change(checkpoint / "generation_config.json", eos_token_id=[7, 8], bos_token_id=5, pad_token_id=6)
    assert read_special_tokens(checkpoint) == SpecialTokens(begin=5, stop=(7, 8, IM_END), pad=6)


def test_the_tokenizer_alone_may_name_them(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    change(checkpoint / "config.json", eos_token_id=None, bos_token_id=None, pad_token_id=None)
    change(
        checkpoint / "tokenizer_config.json",
        eos_token={"content": "<|im_end|>"},
        bos_token=None,
        pad_token=None,
    )
    assert read_special_tokens(checkpoint) == SpecialTokens(begin=None, stop=(IM_END,), pad=IM_END)


def test_refuses_a_text_without_end(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    change(checkpoint / "config.json", eos_token_id=None)
    change(checkpoint / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ExportError, match="does not say which token ends a text"):
        read_special_tokens(checkpoint)


@pytest.mark.parametrize("value", ["2", [2, "2"], -1, 1.5])
def test_refuses_a_token_id_that_is_none(checkpoint: Path, value: object) -> None:
    change(checkpoint / "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match="eos_token_id must be a token id"):
        read_special_tokens(checkpoint)
