from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.data.records import Record
from pipeline.data.render import Example, answer_form, render, supervised_share
from runtime.calls import Call, call_text, load_tools
from runtime.errors import DataError

TOOLS = load_tools(Path(__file__).parents[1] / "configs" / "cockpit-tools.json")
CALL = Call("climate_set_temperature", {"celsius": 22.0, "zone": "driver"})
RECORD = Record("r1", "把主驾调到22度", (CALL,), "zh")

TOOL_CALLS = (
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role }}{% if m.content or not m.tool_calls %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}"
    """{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def test_the_answer_is_the_canonical_text_and_the_end_of_the_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    example = render(RECORD, tokenizer, TOOLS, "Do it.")
    assert tokenizer.decode(example.prompt) == (
        "<|im_start|>system\nDo it.<|im_end|>\n<|im_start|>user\n把主驾调到22度<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(example.answer) == (
        '[{"name":"climate_set_temperature","arguments":{"zone":"driver","celsius":22}}]<|im_end|>'
    )
    assert example.answer[-1] == tokenizer.eos_token_id


def test_a_refusal_is_an_empty_list(tokenizer: PreTrainedTokenizerBase) -> None:
    example = render(Record("r", "hello", (), "en"), tokenizer, TOOLS, "Do it.")
    assert tokenizer.decode(example.answer) == "[]<|im_end|>"


@pytest.mark.parametrize("calls", [(), (CALL,), (CALL, Call("nav_cancel", {}))])
def test_a_template_with_tool_calls_gets_its_own_form(
    tokenizer: PreTrainedTokenizerBase, calls: tuple[Call, ...]
) -> None:
    tokenizer.chat_template = TOOL_CALLS
    assert answer_form(tokenizer) == "hermes"
    example = render(Record("r", "x", calls, "en"), tokenizer, TOOLS, "Do it.")
    assert tokenizer.decode(example.answer) == call_text(calls, TOOLS, "hermes") + "<|im_end|>"
    assert '"climate_set_temperature"' in tokenizer.decode(example.prompt)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda chatml: None, "no chat template"),
        (lambda chatml: chatml + "{# tool_calls #}", "a form that is not known"),
        (lambda chatml: chatml.replace("message['content']", "message['content'] | upper"), "only appends"),
        (lambda chatml: chatml.replace("<|im_end|>", "</s>"), "only appends"),
        (lambda chatml: "{{ messages[0].content }}{{ messages | length }}", "only appends"),
    ],
)
def test_a_template_that_training_cannot_trust_is_refused(
    tokenizer: PreTrainedTokenizerBase, alter: Callable[[str], str | None], message: str
) -> None:
    tokenizer.chat_template = alter(tokenizer.chat_template)
    with pytest.raises(DataError, match=message):
        render(RECORD, tokenizer, TOOLS, "Do it.")


def test_a_call_outside_its_schema_names_the_record(tokenizer: PreTrainedTokenizerBase) -> None:
    record = Record("r9", "x", (Call("climate_set_temperature", {"celsius": 99}),), "en")
    with pytest.raises(DataError, match=r"record r9: .*maximum is 30"):
        render(record, tokenizer, TOOLS, "Do it.")


def test_the_supervised_share_counts_answer_tokens() -> None:
    assert supervised_share([Example((1, 2, 3), (4,)), Example((1,), (2, 3, 4))]) == 0.5
