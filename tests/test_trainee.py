"""The loop that LoRA and full fine-tuning share: what learns, what is kept, and losses by conversation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.claims import guide, quality
from pipeline.claims.finding import Claim, Finding
from pipeline.claims.quality import (
    Learnt,
    Quality,
    best_power,
    measure_quality,
    perplexity_ratio,
    quality_findings,
)
from pipeline.claims.trainee import Lora, Losses, Way, conversation_losses, load, trainee
from pipeline.claims.training_cost import (
    Cost,
    Costs,
    Kept,
    Ways,
    does_not_fit,
    measure_training_cost,
    training_findings,
)
from pipeline.data.packing import Row, pack
from pipeline.data.render import Example
from pipeline.training.batches import mean_loss
from runtime.errors import CheckpointError, StageError, TrainingError

EXAMPLES = [
    Example((1, 7, 7, 30, 5 + number), tuple((number * step) % 40 + 5 for step in range(1, 3 + number % 3)))
    for number in range(8)
]
SEVEN = (*guide.ATTENTION, *guide.FEED_FORWARD)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return pack(EXAMPLES, length=20, context=64, seed=0)


@pytest.fixture
def full(tiny_checkpoint: Path) -> Way:
    return Way(str(tiny_checkpoint), None, 0.98, 0.0, 1.0, "float32", 1)


@pytest.fixture
def lora(full: Way) -> Way:
    return replace(full, lora=Lora(8, 2.0, SEVEN))


def parameters(checkpoint: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    return sum(parameter.numel() for parameter in model.parameters())


def test_losses_are_those_of_the_conversations_one_by_one(tiny_checkpoint: Path, rows: list[Row]) -> None:
    packed = load(tiny_checkpoint, torch.float32).train(False)
    found = conversation_losses(packed, rows, "cpu")
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation="eager")
    expected = {}
    for example in EXAMPLES:
        whole = torch.tensor([example.prompt + example.answer])
        logits = plain(whole).logits[0, len(example.prompt) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum")
        expected[round(nats.item(), 3)] = len(example.answer)
    assert {round(nats, 3): tokens for nats, tokens in zip(found.nats, found.tokens, strict=True)} == expected
    assert found.mean == pytest.approx(mean_loss(packed, rows, "cpu"), rel=1e-6)


def test_full_fine_tuning_trains_everything_and_lora_its_factors(
    tiny_checkpoint: Path, full: Way, lora: Way, rows: list[Row]
) -> None:
    everything = parameters(tiny_checkpoint)
    with trainee(full) as whole, trainee(lora) as factors:
        for model in (whole, factors):
            model.step(rows[0], 1e-3)
        kept, few = whole.kept(), factors.kept()
    assert kept == Kept(everything, 4 * everything, 8 * everything, 0)
    # q, k, v, o, gate, up, down of two layers at rank 8.
    count = 2 * 8 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    assert few == Kept(count, 4 * count, 8 * count, 0)


def test_both_ways_learn_from_the_same_start(full: Way, lora: Way, rows: list[Row]) -> None:
    before = []
    for way in (full, lora):
        with trainee(way) as model:
            first = model.losses(rows)
            for _ in range(5):
                model.step(rows[0], 1e-2)
            last = model.losses(rows[:1])
            assert first is not None
            assert last is not None
            assert last.mean < 0.9 * first.mean
            before.append(first)
    assert before[0].nats == pytest.approx(before[1].nats, rel=1e-5)


def test_bfloat16_products_learn_in_both_ways(full: Way, lora: Way, rows: list[Row]) -> None:
    for way in (replace(full, dtype="bfloat16"), replace(lora, dtype="bfloat16")):
        with trainee(way) as model:
            for _ in range(5):
                model.step(rows[0], 1e-2)
            learnt, kept = model.losses(rows[:1]), model.kept()
        assert learnt is not None
        assert learnt.mean < 4
        # What learns is kept in float32, whatever multiplies it.
        assert kept.gradients == 4 * kept.trained


def test_a_training_that_runs_off_has_no_losses(full: Way, rows: list[Row]) -> None:
    with trainee(full) as model:
        for _ in range(3):
            model.step(rows[0], 1e30)
        assert model.losses(rows) is None


def test_a_base_that_cannot_be_loaded_is_one_sentence(full: Way, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load"), trainee(replace(full, base=str(tmp_path))):
        pass


def ways(full: Way | None, lora: Way) -> Ways:
    assert lora.lora is not None
    return Ways(full, lora, lora, replace(lora, lora=replace(lora.lora, r=64)))


def test_quality_is_measured_on_the_same_steps(full: Way, lora: Way, rows: list[Row]) -> None:
    told: list[tuple[int, int]] = []
    found = measure_quality(
        ways(full, lora), rows, rows[:1], lambda done, total: told.append((done, total)), 4
    )
    assert told[0] == (1, 56)
    assert told[-1][0] == told[-1][1] == len(told) >= 56
    assert found.full is not None
    assert found.lora.losses.mean < found.base.mean
    # Rank and layers of the two are the same, and so is the seed.
    assert found.small == found.lora
    for losses in (found.large.losses, found.attention, found.feed_forward):
        assert losses is not None
        assert losses.tokens == found.base.tokens
        assert losses != found.small.losses


def test_no_rate_that_trains_is_an_error(lora: Way, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "FIRST_RATES", (30, 31))
    with pytest.raises(TrainingError, match="the loss of LoRA became NaN or infinite at every"):
        measure_quality(ways(None, lora), rows, rows, lambda done, total: None, 3)


@pytest.mark.parametrize(
    ("best", "tried"), [(-3, [-4, -3, -2]), (-2, [-4, -3, -2, -1]), (-5, [-4, -3, -5, -6])]
)
def test_the_best_rate_has_been_tried_on_both_sides(best: int, tried: list[int]) -> None:
    asked = []

    def learn(power: int) -> Losses | None:
        asked.append(power)
        return None if power > best + 1 else losses(abs(power - best))

    assert best_power(learn) == (best, losses(0.0))
    assert asked == tried


def test_costs_are_those_of_processes_in_turn(
    tiny_checkpoint: Path, full: Way, lora: Way, rows: list[Row]
) -> None:
    told: list[tuple[int, int]] = []
    found = measure_training_cost(ways(full, lora), rows, lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]
    assert found.full is not None
    for cost in (found.full, found.lora, found.small, found.large):
        assert len(cost.milliseconds) == 7
        assert min(cost.milliseconds) > 0
        assert cost.peak_bytes > 2**27
    assert found.full.kept.trained == parameters(tiny_checkpoint)
    assert found.large.kept.trained == 8 * found.small.kept.trained


def test_a_training_process_that_stops_is_named_with_its_reason(
    full: Way, lora: Way, rows: list[Row], tmp_path: Path
) -> None:
    broken = replace(full, base=str(tmp_path))
    with pytest.raises(StageError, match='claims: the training "full" stopped: cannot load'):
        measure_training_cost(ways(broken, lora), rows, lambda done, total: None)


def test_what_does_not_fit_is_said_in_bytes() -> None:
    assert does_not_fit(134_515_008, 24 * 10**9) == ""
    assert does_not_fit(1_543_714_304, 24 * 10**9).startswith(
        "full fine-tuning keeps 24.7\u00a0GB of weights"
    )


def cost(milliseconds: float, peak: int, trained: int) -> Cost:
    return Cost((milliseconds,) * 7, peak, Kept(trained, 4 * trained, 8 * trained, 0))


def verdicts(findings: list[Finding]) -> dict[Claim, str]:
    return {finding.claim: finding.verdict for finding in findings}


AGAINST_FULL = (
    guide.MEMORY_STATE,
    guide.MEMORY_PEAK,
    guide.SPEEDUP,
    guide.TIME_SAVED,
    guide.MEMORY_SAVED_STATE,
    guide.MEMORY_SAVED_PEAK,
)


def test_costs_bear_the_guide_out_or_not() -> None:
    lora, small, large = cost(100, 10, 1000), cost(90, 9, 500), cost(120, 12, 4000)
    as_said = verdicts(training_findings(Costs(cost(1700, 1800, 180_000), lora, small, large), ""))
    assert {as_said[claim] for claim in AGAINST_FULL} == {"holds"}
    assert as_said[guide.RANK_TIME] == as_said[guide.RANK_MEMORY] == as_said[guide.FROZEN] == "holds"
    otherwise = verdicts(training_findings(Costs(cost(150, 12, 10_000), lora, large, small), ""))
    assert {otherwise[claim] for claim in AGAINST_FULL} == {"fails"}
    assert otherwise[guide.RANK_TIME] == otherwise[guide.RANK_MEMORY] == "fails"
    leaking = replace(lora, kept=Kept(1000, 4000, 8000, 64))
    assert verdicts(training_findings(Costs(None, leaking, small, large), ""))[guide.FROZEN] == "fails"


def test_without_full_fine_tuning_nothing_is_said_of_it() -> None:
    found = training_findings(Costs(None, *(cost(100, 10, 1000) for _ in range(3))), "it does not fit")
    for finding in found:
        if finding.claim in AGAINST_FULL:
            assert (finding.figure, finding.verdict, finding.note) == (None, "unmeasured", "it does not fit")
    assert set(AGAINST_FULL) < {finding.claim for finding in found}


def losses(*nats: float) -> Losses:
    return Losses(nats, (10,) * len(nats))


def test_perplexity_is_compared_conversation_by_conversation() -> None:
    first, second = losses(2.0, 30.0, 11.0), losses(1.0, 29.0, 10.0)
    found = perplexity_ratio(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(0.1),) * 3)
    assert found.units == 3


def test_quality_bears_the_guide_out_or_not() -> None:
    good, bad = losses(1.0, 2.0, 3.0), losses(5.0, 6.0, 7.0)
    close = Learnt(1e-5, good)
    as_said = verdicts(
        quality_findings(Quality(bad, Learnt(1e-4, bad), close, close, close, losses(1.5, 2.5, 3.5), bad), "")
    )
    for claim in (guide.CLOSE, guide.EXCEEDS, guide.RATE, guide.RANK_QUALITY, guide.ATTENTION_FIRST):
        assert as_said[claim] == "holds", claim.english
    assert as_said[guide.MLP_ADDS] == "holds"
    otherwise = quality_findings(
        Quality(
            bad,
            Learnt(1e-4, good),
            Learnt(1e-3, bad),
            Learnt(1e-3, bad),
            Learnt(1e-4, losses(9.0, 9.0, 9.0)),
            good,
            None,
        ),
        "",
    )
    said = verdicts(otherwise)
    for claim in (guide.CLOSE, guide.EXCEEDS, guide.RATE, guide.RANK_QUALITY, guide.MLP_ADDS):
        assert said[claim] == "fails", claim.english
    (ran_off,) = [finding for finding in otherwise if finding.claim is guide.ATTENTION_FIRST]
    assert ran_off.verdict == "unmeasured"
    assert ran_off.note.endswith("one of the two ran off to NaN or infinity")
    for claim in (guide.GENERALIZES, guide.ADALORA, guide.DORA, guide.LORA_PLUS):
        assert said[claim] == "unmeasured"
