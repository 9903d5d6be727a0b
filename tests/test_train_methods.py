"""Each method of the LoRA family: what it learns, what it leaves alone, and what PEFT reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config import Train
from pipeline.evidence.admission import _training
from pipeline.merge import merge_weighted
from pipeline.quiet import quiet_transformers
from pipeline.stage import Artifact
from pipeline.training import frozen
from pipeline.training.adalora import orthogonality_penalty, schedule
from pipeline.training.batches import collate
from pipeline.training.loading import load_base, qlora_obstacle
from pipeline.training.lora import fused_lora
from pipeline.training.optimizer import adamw
from pipeline.training.precision import Precision
from pipeline.training.variants import adapted_by
from runtime.errors import ConfigError
from runtime.report import Training
from tests.tiny_training import KilledError, config, killed_at, run, silent, write_data

OBSTACLE = qlora_obstacle("cpu")
METHODS = ("lora", "qlora", "dora", "adalora")
WEIGHTS = "adapter_model.safetensors"
CPU = Precision("cpu", torch.float32)
BASE_WEIGHTS = {"lora": 8192, "qlora": 8192, "dora": 9216, "adalora": 12372}
"""Trained numbers at r = 4 on the tiny model: AdaLoRA starts at rank 6, DoRA has one more per output."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_tools_file: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), tiny_tools_file)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "qlora" and OBSTACLE is not None:
        pytest.skip(OBSTACLE.reason)
    return str(request.param)


def loaded(base: Path, method: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with quiet_transformers():
        return load_base(base, Precision("cpu", dtype), four_bit=method == "qlora")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_reads_back_what_was_trained(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str, dtype: str
) -> None:
    """The validation loss of the adapter on disk is that of the model in memory."""
    settings = config(data / "tools.json", method=method, dtype=dtype, max_steps=8)
    out, figures = run(settings, tiny_checkpoint, data, tmp_path)
    losses = figures["validation_loss"]
    assert isinstance(losses, dict)
    assert losses["after"] < losses["before"]
    assert json.loads((out / "training.json").read_text())["method"] == method
    assert figures["trainable_parameters"] == BASE_WEIGHTS[method]
    with quiet_transformers():
        model = PeftModel.from_pretrained(loaded(tiny_checkpoint, method, getattr(torch, dtype)), out)
    assert validation_loss(model, data) == pytest.approx(
        losses["after"], rel=1e-5 if dtype == "float32" else 2e-3
    )


def validation_loss(model: PeftModel, data: Path) -> float:
    from transformers import AutoTokenizer

    from pipeline.data.packing import pack
    from pipeline.data.records import read_records
    from pipeline.data.render import render
    from pipeline.training.batches import mean_loss
    from runtime.calls import load_tools

    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    settings = config(data / "tools.json")
    examples = [
        render(record, tokenizer, load_tools(data / "tools.json"), settings.data.system)
        for record in read_records(data / "validation.jsonl")
    ]
    return mean_loss(model, pack(examples, length=256, context=512, seed=0), "cpu")


def test_every_weight_of_the_base_is_watched_and_stays(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    digests = frozen.digests

    def remembered(*args: object) -> dict[str, str]:
        seen.append(digests(*args))
        return seen[-1]

    monkeypatch.setattr("pipeline.train.digests", remembered)
    run(config(data / "tools.json", method=method, max_steps=3), tiny_checkpoint, data, tmp_path)
    before, after = seen
    assert before == after
    model = loaded(tiny_checkpoint, method)
    assert before.keys() == dict(model.named_parameters()).keys()
    assert before == digests(dict(model.named_parameters()), model)


def test_an_interrupted_training_ends_as_one_that_was_not(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str
) -> None:
    """AdaLoRA is killed while ranks fall, and again when they are settled."""
    settings = config(data / "tools.json", method=method, max_steps=12)
    whole, figures = run(settings, tiny_checkpoint, data, tmp_path / "whole")
    work = tmp_path / "work"
    for step in (5, 11):
        with pytest.raises(KilledError):
            run(settings, tiny_checkpoint, data, tmp_path / str(step), work, killed_at(step))
    resumed, found = run(settings, tiny_checkpoint, data, tmp_path / "resumed", work)
    assert found["resumed_from_step"] == 10
    assert {path.name for path in whole.iterdir()} == {path.name for path in resumed.iterdir()}
    for path in whole.iterdir():
        assert path.read_bytes() == (resumed / path.name).read_bytes(), path.name
    assert figures["steps"] == 12


def test_a_training_killed_behind_its_last_step_makes_no_further_one(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", max_steps=4)
    whole, _ = run(settings, tiny_checkpoint, data, tmp_path / "whole")

    def kill(message: str, done: int, total: int) -> None:
        if message == "validating the adapter":
            raise KilledError

    with pytest.raises(KilledError):
        run(settings, tiny_checkpoint, data, tmp_path / "killed", tmp_path / "work", kill)
    resumed, figures = run(settings, tiny_checkpoint, data, tmp_path / "resumed", tmp_path / "work")
    assert (figures["resumed_from_step"], figures["steps"]) == (2, 4)
    assert (whole / WEIGHTS).read_bytes() == (resumed / WEIGHTS).read_bytes()


def test_loraplus_has_b_alone_learn_faster(tiny_checkpoint: Path, method: str) -> None:
    settings = Train.model_validate({"method": method, "loraplus_ratio": 4.0, "learning_rate": 1e-3})
    with quiet_transformers():
        model = adapted_by(loaded(tiny_checkpoint, method), settings, schedule(settings, 10))
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {
        names[id(weight)]: group["lr"]
        for group in adamw(model, settings).param_groups
        for weight in group["params"]
    }
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {4e-3}
    assert {rate for name, rate in rates.items() if "lora_B" not in name} == {1e-3}
    assert rates.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in rates)


def test_dropout_acts_in_every_method(tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str) -> None:
    """Once B is no longer zero: at the second step the loss is another one."""
    losses = [
        run(
            config(data / "tools.json", method=method, dropout=dropout, max_steps=3, warmup_share=0.0),
            tiny_checkpoint,
            data,
            tmp_path / str(dropout),
        )[1]["curve"][2]["loss"]
        for dropout in (0.0, 0.5)
    ]
    assert losses[0] != losses[1]


def test_gradient_checkpointing_is_the_same_training(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, method: str
) -> None:
    plain, again = (
        run(
            config(data / "tools.json", method=method, max_steps=3, gradient_checkpointing=checkpointing),
            tiny_checkpoint,
            data,
            tmp_path / str(checkpointing),
        )
        for checkpointing in (False, True)
    )
    for mine, theirs in zip(plain[1]["curve"], again[1]["curve"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    factors, others = load_file(plain[0] / WEIGHTS), load_file(again[0] / WEIGHTS)
    for name, factor in factors.items():
        assert factor == pytest.approx(others[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_checkpointing_has_the_gradients_of_plain_training_and_runs_layers_twice(
    tiny_checkpoint: Path, data: Path, fused: bool
) -> None:
    row = next(iter(training_rows(tiny_checkpoint, data)))
    batch = collate([row])
    batch.pop("labels")
    found: list[dict[str, torch.Tensor]] = []
    calls: list[int] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = adapted_by(loaded(tiny_checkpoint, "lora"), Train(r=4), None)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        if checkpointing:
            with quiet_transformers():
                model.gradient_checkpointing_enable({"use_reentrant": False})
        times: list[int] = []
        layer = model.base_model.model.model.layers[0].input_layernorm
        layer.register_forward_hook(lambda *unused, times=times: times.append(1))
        model.train()
        if fused:
            with fused_lora(model):
                model(**batch, use_cache=False).logits.float().square().mean().backward()
        else:
            model(**batch, use_cache=False).logits.float().square().mean().backward()
        calls.append(len(times))
        found.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    assert calls == [1, 2]
    assert len(found[0]) == 28
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def training_rows(base: Path, data: Path) -> list[object]:
    from pipeline.train import _splits

    split, _ = _splits(config(data / "tools.json"), base, data, 512)
    return list(split.rows)


@pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE.reason if OBSTACLE else "")
class TestFourBit:
    def test_blocks_are_nf4_and_all_else_is_in_the_compute_type(self, tiny_checkpoint: Path) -> None:
        model = loaded(tiny_checkpoint, "qlora", torch.bfloat16)
        packed = {name: weight for name, weight in model.named_parameters() if hasattr(weight, "quant_state")}
        assert len(packed) == 14
        for weight in packed.values():
            state = weight.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, False)
        rest = {weight.dtype for name, weight in model.named_parameters() if name not in packed}
        assert rest == {torch.bfloat16}
        assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
        assert not hasattr(model.lm_head.weight, "quant_state")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_blocks_are_what_a_merge_onto_nf4_begins_with(
        self, tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        functional = pytest.importorskip("bitsandbytes").functional
        merge_weighted(tiny_checkpoint, [], tmp_path, tmp_path, silent, onto="nf4", shard_bytes=None)
        merged = load_tensors(tmp_path / "model.safetensors")
        model = loaded(tiny_checkpoint, "qlora", dtype)
        packed = {name: weight for name, weight in model.named_parameters() if hasattr(weight, "quant_state")}
        assert len(packed) == 14
        for name, weight in packed.items():
            weight.quant_state.dtype = torch.float32
            found = functional.dequantize_4bit(weight.data, weight.quant_state)
            torch.testing.assert_close(found, merged[name], rtol=0, atol=0)

    def test_the_figures_count_weights_not_bytes(
        self, tiny_checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        totals = [
            run(
                config(data / "tools.json", method=method, max_steps=1),
                tiny_checkpoint,
                data,
                tmp_path / method,
            )[1]["total_parameters"]
            for method in ("lora", "qlora")
        ]
        assert totals[0] == totals[1]

    def test_a_validation_before_training_leaves_the_gradients(self, tiny_checkpoint: Path) -> None:
        """bitsandbytes would repack for a kernel without backward, where the processor has one."""
        torch.manual_seed(0)
        model = adapted_by(loaded(tiny_checkpoint, "qlora"), Train(r=4), None)
        tokens = torch.arange(8)[None]
        arguments = {"input_ids": tokens, "slots": torch.tensor([[6, 7]]), "real": torch.tensor([0, 1])}
        found = []
        for validated in (False, True):
            if validated:
                model.eval()
                with torch.no_grad():
                    model(**arguments, use_cache=False)
            model.train()
            model.zero_grad()
            model(**arguments, use_cache=False).logits.square().mean().backward()
            found.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})
        assert len(found[0]) == 28
        for name, gradient in found[0].items():
            assert torch.equal(found[1][name], gradient), name

    def test_a_changed_number_or_scale_of_a_packed_weight_is_noticed(self, tiny_checkpoint: Path) -> None:
        model = loaded(tiny_checkpoint, "qlora")
        weights = dict(model.named_parameters())
        name = "model.layers.0.mlp.up_proj.weight"
        before = frozen.digests(weights, model)
        weights[name].quant_state.absmax[0] += 1e-3
        scaled = frozen.digests(weights, model)
        weights[name].data[0] += 1
        packed = frozen.digests(weights, model)
        assert len({before[name], scaled[name], packed[name]}) == 3
        assert {other for other in before if before[other] != packed[other]} == {name}


def test_a_replaced_weight_counts_as_changed(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    weights = dict(model.named_parameters())
    before = frozen.digests(weights, model)
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.detach().clone())
    assert before.keys() - frozen.digests(weights, model).keys() == {"model.norm.weight"}


def test_adalora_keeps_as_much_rank_as_the_target_and_says_where(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """14 layers at r = 4; ties, which PEFT masks together, may keep a little less."""
    settings = config(data / "tools.json", method="adalora", max_steps=12)
    out, figures = run(settings, tiny_checkpoint, data, tmp_path)
    ranks, layers = figures["ranks"], figures["layers_of_rank"]
    assert isinstance(ranks, dict)
    assert isinstance(layers, dict)
    assert len(ranks) == sum(layers.values()) == 14
    assert 14 * 4 - 3 <= sum(ranks.values()) <= 14 * 4
    assert sum(int(rank) * count for rank, count in layers.items()) == sum(ranks.values())
    assert len(layers) > 1
    for name, factor in load_file(out / WEIGHTS).items():
        if ".lora_E" in name:
            assert len(factor) == ranks[name.removeprefix("base_model.model.").removesuffix(".lora_E")]
    fields = json.loads((out / "adapter_config.json").read_text())
    assert (fields["init_r"], fields["target_r"], fields["total_step"]) == (6, 4, 12)
    assert (fields["tinit"], fields["tfinal"]) == (1, 3)


def test_the_loss_has_the_orthogonality_that_peft_adds_to_its_own(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """Whatever the rows of a step: PEFT's forward adds it once to a loss that the model computes."""
    plan = schedule(Train(method="adalora", r=4), 8)
    with quiet_transformers():
        model = adapted_by(loaded(tiny_checkpoint, "adalora"), Train(method="adalora", r=4), plan)
    tokens = torch.arange(8)[None]
    places = {"slots": torch.tensor([[6, 7]]), "real": torch.tensor([0, 1])}
    with_penalty = model(input_ids=tokens, labels=tokens, use_cache=False, **places).loss
    model.peft_config["default"].orth_reg_weight = 0.0
    without = model(input_ids=tokens, labels=tokens, use_cache=False, **places).loss
    model.peft_config["default"].orth_reg_weight = 0.5
    penalty = orthogonality_penalty(model)
    assert penalty.item() == pytest.approx((with_penalty - without).item(), rel=1e-4)
    assert penalty.item() > 0.5

    first = {
        (weight, rows): run(
            config(
                data / "tools.json",
                method="adalora",
                adalora_orth_reg_weight=weight,
                max_steps=2,
                tokens_per_step=16,
                gradient_accumulation=rows,
            ),
            tiny_checkpoint,
            data,
            tmp_path / f"{weight}-{rows}",
        )[1]["curve"][0]["loss"]
        for weight in (0.0, 0.5)
        for rows in (4, 12)
    }
    added = [first[0.5, rows] - first[0.0, rows] for rows in (4, 12)]
    assert added[0] == pytest.approx(added[1], rel=1e-4)
    assert added[0] == pytest.approx(penalty.item(), rel=0.05)


def test_adalora_with_too_few_steps_says_how_many_it_needs(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = config(data / "tools.json", method="adalora", adalora_delta_t=5, max_steps=6)
    with pytest.raises(ConfigError, match=r"adalora_delta_t needs 8 steps, and there are 6: raise train\."):
        run(settings, tiny_checkpoint, data, tmp_path / "few")
    enough = config(data / "tools.json", method="adalora", adalora_delta_t=5, max_steps=8)
    _, figures = run(enough, tiny_checkpoint, data, tmp_path / "enough")
    assert figures["steps"] == 8


def test_adalora_s_schedule_is_in_shares_of_the_steps() -> None:
    found = schedule(Train(method="adalora", adalora_tinit=0.25, adalora_tfinal=0.5), 20)
    assert found is not None
    assert (found.steps, found.warmup, found.settled) == (20, 5, 10)
    assert schedule(Train(), 20) is None


def test_the_report_has_the_ranks_that_adalora_kept(tmp_path: Path) -> None:
    figures = {"steps": 12, "method": "adalora", "ranks": {"q_proj": 3}, "layers_of_rank": {"3": 1, "5": 2}}
    (tmp_path / "training.json").write_text(json.dumps(figures))
    made = {"adapter": Artifact(tmp_path, "", {})}
    assert _training(made) == Training("adalora", {"steps": 12.0}, {"3": 1, "5": 2}, "", {})


def test_the_report_has_what_both_merges_of_qlora_differ_by(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"method": "qlora"}')
    figures = {"onto": "nf4", "from_unmerged": {"base": {"kl_mean": 0.02}, "nf4": {"kl_mean": 1e-12}}}
    (tmp_path / "stage.json").write_text(json.dumps({"figures": figures}))
    folder = Artifact(tmp_path, "", {})
    found = _training({"adapter": folder, "merged": folder})
    assert found == Training("qlora", {}, {}, "nf4", {"base": 0.02, "nf4": 1e-12})


def test_the_report_of_an_adapter_from_elsewhere_says_nothing_of_training(tmp_path: Path) -> None:
    assert _training({}) == _training({"adapter": Artifact(tmp_path, "", {})}) == Training("", {}, {}, "", {})
