"""What is read back of a training's record."""

from pathlib import Path

import pytest

from pipeline.training.record import TRAINING, trained_in_nf4, trained_prompt
from runtime.errors import AdapterError


def test_an_adapter_from_elsewhere_says_nothing_of_its_prompt(tmp_path: Path) -> None:
    assert trained_prompt(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAINING).write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match="cannot read"):
        trained_prompt(tmp_path)


def test_a_record_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text("[]", encoding="utf-8")
    with pytest.raises(AdapterError, match="is not a JSON object"):
        trained_prompt(tmp_path)


def test_only_qlora_trains_beside_4_bit_weights(tmp_path: Path) -> None:
    assert not trained_in_nf4(tmp_path)
    for method in ("lora", "qlora", "dora"):
        (tmp_path / TRAINING).write_text(f'{{"method": "{method}"}}', encoding="utf-8")
        assert trained_in_nf4(tmp_path) == (method == "qlora")


@pytest.mark.parametrize("text", ['{"steps": 3}', '{"system": null}'])
def test_a_record_without_a_prompt_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAINING).write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match="does not say which system prompt"):
        trained_prompt(tmp_path)
