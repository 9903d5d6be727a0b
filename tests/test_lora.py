"""The fused LoRA layer computes what PEFT's does."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipeline.quiet import quiet_transformers
from pipeline.training.lora import fused_lora, lora_stack


class Two(torch.nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 10)
        self.second = torch.nn.Linear(10, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(dropout: float = 0.0, *, rslora: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    with quiet_transformers():
        lora = LoraConfig(
            r=3, lora_alpha=5, lora_dropout=dropout, use_rslora=rslora, target_modules=["first", "second"]
        )
        model = get_peft_model(Two(), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


def gradients(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    result = model(x)
    result.square().sum().backward()
    return result, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rslora", [False, True])
def test_result_and_gradients_are_peft_s(rslora: bool) -> None:
    model = adapted(rslora=rslora)
    x = torch.randn(2, 5, 6)
    result, wanted = gradients(model, x)
    with fused_lora(model):
        fused, found = gradients(model, x)
    torch.testing.assert_close(fused, result, rtol=1e-5, atol=1e-6)
    assert len(found) == 4
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)
    assert fused.grad_fn is not None
    assert torch.equal(model(x), result)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 6), torch.randn(9, 6), torch.randn(9)
    factors = [torch.randn(shape) for shape in ((2, 6), (5, 2), (3, 6), (4, 3))]
    x, weight, bias, *factors = (tensor.double() for tensor in (x, weight, bias, *factors))
    for trained in (x, *factors):
        trained.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *factors: lora_stack(x, weight, bias, (1.7, 0.3), factors), (x, *factors)
    )


class Siblings(torch.nn.Module):
    """Three layers on one input, named as a decoder's are, and one behind them."""

    def __init__(self, biased: tuple[bool, bool, bool]) -> None:
        super().__init__()
        for name, width, bias in zip(("q_proj", "k_proj", "v_proj"), (8, 4, 4), biased, strict=True):
            setattr(self, name, torch.nn.Linear(6, width, bias=bias))
        self.o_proj = torch.nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.q_proj(x) * torch.cat([self.k_proj(x), self.v_proj(x)], dim=-1)
        return self.o_proj(mixed)


@pytest.mark.parametrize("biased", [(False,) * 3, (True,) * 3, (True, False, True)])
def test_siblings_on_one_input_are_one_stack_and_the_same_function(biased: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    with quiet_transformers():
        lora = LoraConfig(r=3, lora_alpha=5, target_modules=names, rank_pattern={"k_proj": 2})
        model = get_peft_model(Siblings(biased), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    x = torch.randn(2, 5, 6)
    result, wanted = gradients(model, x)
    with fused_lora(model):
        fused, found = gradients(model, x)
        gradients(model, torch.randn(1, 2, 6))  # another input, and then the first again
        again, _ = gradients(model, x)
    torch.testing.assert_close(fused, result, rtol=1e-5, atol=1e-5)
    assert torch.equal(fused, again)
    assert found.keys() == wanted.keys()
    assert len(found) == 8
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


def test_half_precision_inputs_give_float32_gradients_of_the_factors() -> None:
    model = adapted().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    with fused_lora(model):
        result, found = gradients(model, torch.randn(2, 5, 6, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}


def test_layers_with_dropout_keep_peft_s_way() -> None:
    model = adapted(dropout=0.5)
    x = torch.randn(8, 6)
    with fused_lora(model):
        assert not torch.equal(model(x), model(x))
