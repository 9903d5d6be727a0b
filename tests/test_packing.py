import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.data.packing import Row, attention_mask, common_prefix, pack
from pipeline.data.render import Example
from runtime.errors import DataError

PREFIX = (1, 2, 3, 4)


def _examples(count: int, seed: int = 0) -> list[Example]:
    """Examples of random lengths behind one prefix, whose own first tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (count, 2), generator=generator).tolist()
    return [
        Example(
            (*PREFIX, 5 + index % 20, *torch.randint(5, 40, (prompt,), generator=generator).tolist()),
            tuple(torch.randint(5, 40, (answer,), generator=generator).tolist()),
        )
        for index, (prompt, answer) in enumerate(lengths)
    ]


def _completions(row: Row) -> list[Example]:
    """The examples of a row, read back from its segments and targets."""
    prefix = [token for token, segment in zip(row.input_ids, row.segments, strict=True) if segment == 0]
    found = []
    for segment in range(1, max(row.segments) + 1):
        places = [place for place, own in enumerate(row.segments) if own == segment]
        targets = [t for p, t in zip(row.predictors, row.targets, strict=True) if row.segments[p] == segment]
        prompt = [row.input_ids[place] for place in places[: len(places) - len(targets) + 1]]
        found.append(Example((*prefix, *prompt), tuple(targets)))
    return found


def test_every_example_is_in_exactly_one_row_that_is_not_too_long() -> None:
    examples = _examples(50)
    rows = pack(examples, length=36, context=64, seed=3)
    packed = [example for row in rows for example in _completions(row)]
    assert sorted(packed, key=repr) == sorted(examples, key=repr)
    assert 30 < max(len(row.input_ids) for row in rows) - len(PREFIX) <= 36
    assert len(rows) < 25
    assert rows == pack(examples, length=36, context=64, seed=3)
    assert rows != pack(examples, length=36, context=64, seed=4)


def test_a_longer_prefix_changes_no_row_but_for_itself() -> None:
    short = _examples(30)
    long = [Example((*range(40, 90), *example.prompt[4:]), example.answer) for example in short]
    packed = [pack(examples, length=30, context=128, seed=0) for examples in (short, long)]
    assert [[len(row.targets), max(row.segments)] for row in packed[0]] == [
        [len(row.targets), max(row.segments)] for row in packed[1]
    ]
    assert {len(b.input_ids) - len(a.input_ids) for a, b in zip(*packed, strict=True)} == {46}


def test_positions_restart_behind_the_prefix() -> None:
    for row in pack(_examples(10), length=36, context=64, seed=0):
        for segment in range(1, max(row.segments) + 1):
            own = [p for p, s in zip(row.positions, row.segments, strict=True) if s == segment]
            assert own == list(range(4, 4 + len(own)))


def test_a_long_example_has_its_own_row_and_is_whole() -> None:
    examples = [*_examples(5), Example((*PREFIX, 5), tuple(range(5, 55)))]
    rows = pack(examples, length=26, context=64, seed=0)
    (long,) = [row for row in rows if len(row.input_ids) > 30]
    assert _completions(long) == [examples[-1]]


def test_an_example_longer_than_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="has 65 tokens and the model takes 64"):
        pack([Example((1, 2), tuple(range(63)))], length=512, context=64, seed=0)


@pytest.mark.parametrize("example", [Example((), (1,)), Example((1,), ())])
def test_an_empty_half_is_refused(example: Example) -> None:
    with pytest.raises(DataError, match="empty"):
        pack([example], length=8, context=8, seed=0)


def test_the_prefix_leaves_every_prompt_a_token() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4)]) == (1, 2)
    assert common_prefix([(1, 2), (1, 2, 3)]) == (1,)
    assert common_prefix([(1, 2)]) == (1,)
    assert common_prefix([(1, 2), (3, 2)]) == ()
    assert common_prefix([]) == ()


def test_the_mask_lets_a_completion_see_the_prefix_and_itself() -> None:
    mask = attention_mask(torch.tensor([[0, 0, 1, 1, 2]]))
    assert mask.int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    ]


def _losses(model: LlamaForCausalLM, logits: Tensor, targets: tuple[int, ...]) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_row_has_the_loss_and_gradients_of_its_examples(attention: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).double().train()
    examples = _examples(6)
    rows = pack(examples, length=32, context=64, seed=0)
    assert max(max(row.segments) for row in rows) > 1

    alone = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.tensor([example.prompt + example.answer[:-1]])
        alone = alone + _losses(model, model(ids).logits[0, len(example.prompt) - 1 :], example.answer)
    expected = torch.autograd.grad(alone, list(model.parameters()))

    packed = torch.zeros((), dtype=torch.float64)
    for row in rows:
        seen = attention_mask(torch.tensor([row.segments]))[:, None]
        logits = model(
            torch.tensor([row.input_ids]),
            attention_mask=torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf")),
            position_ids=torch.tensor([row.positions]),
            logits_to_keep=torch.tensor(row.predictors),
        ).logits[0]
        packed = packed + _losses(model, logits, row.targets)
    found = torch.autograd.grad(packed, list(model.parameters()))

    # transformers computes norms and eager softmax in float32 whatever the model's type.
    torch.testing.assert_close(packed, alone, rtol=1e-8, atol=0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
