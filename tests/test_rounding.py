"""Rounding with a view to inputs: what is seen, what it costs, what is chosen, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_graph import FAMILIES, randomized
from transformers import AutoModelForCausalLM

from export.checkpoint import export_checkpoint
from export.quantize import quantize_blocks, unpacked_blocks
from export.rounded import ROUNDED, Rounded
from export.shapes import EMBEDDING
from export.weights import Checkpoint
from pipeline.config import Objective
from pipeline.evidence.form import Conversation
from pipeline.rounding.assignment import Form, frontier, within_bytes, within_kl
from pipeline.rounding.cost import embedding_cost, head_cost, layer_cost
from pipeline.rounding.layers import Layers
from pipeline.rounding.round import round_weights
from pipeline.rounding.sweep import Ends, Seen, batches, sweep
from runtime.errors import CheckpointError, DataError, ExportError, StageError

SYSTEM = "Turn the request into vehicle function calls."
TOKENS = tuple(range(3, 33))
CONVERSATIONS = [
    Conversation("a", TOKENS, 4),
    Conversation("b", tuple(reversed(TOKENS)), 4),
    Conversation("c", TOKENS[5:25], 4),
    Conversation("d", TOKENS[10:], 4),
]


def silent(message: str, done: int, total: int) -> None:
    """No progress."""


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_after_the_other_is_the_model(family: str, tmp_path: Path) -> None:
    model = randomized(FAMILIES[family])
    model.save_pretrained(tmp_path)
    layers = Layers(tmp_path)
    with torch.no_grad():
        (stream,) = layers.embedded([torch.tensor([TOKENS])])
        for number in range(layers.architecture.layers):
            stream = layers.layer(number).run(stream)
        logits = layers.normalized(stream)[0] @ layers.head().T
        expected = model(torch.tensor([TOKENS])).logits[0]
    assert float((logits - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def swept(folder: Path, scratch: Path, times: int) -> tuple[dict[str, Seen], Ends]:
    """What many draws show."""
    found = list(sweep(Layers(folder), batches(CONVERSATIONS * times), 0, scratch, silent))
    assert not list(scratch.glob("*.pt"))
    (ends,) = (seen for seen in found if isinstance(seen, Ends))
    return {seen.name: seen for seen in found if isinstance(seen, Seen)}, ends


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    randomized(FAMILIES["llama tied"]).save_pretrained(folder)
    return folder


def divergence(folder: Path, name: str, changed: np.ndarray) -> float:
    """Mean KL over the counted positions when tensor `name` is changed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    torch.log_softmax(
                        model(torch.tensor([one.tokens])).logits[0][one.start - 1 : -1].double(), dim=-1
                    )
                    for one in CONVERSATIONS
                ]
            )

    before = logits()
    with torch.no_grad():
        dict(model.named_parameters())[name].copy_(torch.from_numpy(changed))
    return float((before.exp() * (before - logits())).sum(dim=-1).mean())


@pytest.mark.parametrize("module", ["self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_cost_is_the_divergence_that_it_foretells(
    layer: int, module: str, llama: Path, tmp_path: Path
) -> None:
    """Up to what outputs and tokens have in common, which the estimate leaves out."""
    seen, ends = swept(llama, tmp_path, 40)
    name = f"model.layers.{layer}.{module}.weight"
    (one,) = seen[name].parts
    random = np.random.default_rng(layer)
    noise = random.normal(size=one.weight.shape).astype(np.float32) * np.float32(0.003)
    foretold = layer_cost(one, one.weight + noise, len(ends.hidden))
    measured = np.mean(
        [divergence(llama, name, one.weight + (noise if sign > 0 else -noise)) for sign in (1, -1)]
    )
    assert 0.5 * measured < foretold < 2 * measured


def test_what_is_seen_is_counted_token_by_token(llama: Path, tmp_path: Path) -> None:
    seen, ends = swept(llama, tmp_path, 1)
    assert len(seen) == 12
    assert len(ends.hidden) == CONVERSATIONS[0].positions, "one of four is to judge by"
    for one in (part for each in seen.values() for part in each.parts):
        assert one.inputs.shape == (one.weight.shape[1],) * 2
        assert one.apart.shape == one.inputs.shape
        np.testing.assert_allclose(one.inputs, one.inputs.T)
        assert 0 < one.apart.trace() < one.inputs.trace()
        assert one.rows.sum() == pytest.approx(1)
    parts = seen["model.layers.1.self_attn.qkv_proj.weight"].parts
    for part, module in zip(parts, "qkv", strict=True):
        tensor = f"model.layers.1.self_attn.{module}_proj.weight"
        np.testing.assert_array_equal(part.weight, Checkpoint(llama).read_float32(tensor))
    assert not np.allclose(
        parts[0].inputs / parts[0].inputs.trace(), parts[2].inputs / parts[2].inputs.trace()
    )
    unread = np.setdiff1d(np.arange(99), TOKENS)
    assert (ends.embedding[unread] == 0).all()
    assert (ends.embedding[list(TOKENS)] > 0).all()


def test_every_second_conversation_is_read_behind_others() -> None:
    many = [Conversation(str(at), tuple(range(at, at + 30)), 4) for at in range(96)]
    for apart in (False, True):
        chosen = [one for at, one in enumerate(many) if (at % 4 == 0) == apart]
        behind = [token for one in chosen[1::2] for token in one.tokens]
        expected = {one.tokens: list(range(3, 29)) for one in chosen[::2]}
        for at in range(0, len(behind), 512):
            part = tuple(behind[at : at + 512])
            expected[part] = list(range(len(part) // 2, len(part) - 1))
        found = {}
        for batch in batches(many):
            for ids, counted in zip(batch.ids, batch.counted, strict=True):
                places = counted.nonzero().flatten().tolist()
                if batch.apart == apart:
                    found[tuple(ids[: places[-1] + 2].tolist())] = places
        assert found == expected
    assert sum(len(batch.ids) for batch in batches(many)) == 48 + 3 + 1


def test_the_ends_cost_what_they_change(llama: Path, tmp_path: Path) -> None:
    _, ends = swept(llama, tmp_path, 1)
    weight = Checkpoint(llama).read_float32(EMBEDDING)
    rounded = unpacked_blocks(quantize_blocks(weight, 4, 32, symmetric=False), 64, 4)
    assert head_cost(ends, weight, weight) == pytest.approx(0, abs=1e-7)
    assert embedding_cost(ends, weight, weight) == 0
    together = head_cost(ends, weight, rounded) + embedding_cost(ends, weight, rounded)
    measured = divergence(llama, EMBEDDING, rounded)
    assert 0.4 * measured < together < 2.5 * measured


FORMS = {
    "head": [Form(4, 64, 100, 1.0), Form(8, 64, 180, 0.0)],
    "embedding": [Form(4, 64, 50, 0.0)],
    "a": [Form(4, 64, 10, 1.0), Form(4, 32, 12, 0.95), Form(8, 64, 20, 0.0)],
    "b": [Form(4, 64, 10, 0.3), Form(8, 64, 20, 0.1), Form(8, 32, 22, 0.2)],
}


def test_the_frontier_buys_what_saves_most() -> None:
    points = frontier(FORMS)
    figures = [(point.nbytes, round(point.kl, 9)) for point in points]
    assert figures == [(170, 2.3), (180, 1.3), (190, 1.1), (260, 0.3), (270, 0.1)]
    assert points[1].forms["a"] == Form(8, 64, 20, 0.0), "a's 4 bits in 32 lie above its hull"
    assert within_bytes(points, 269) is points[3]
    assert within_bytes(points, 270) is points[4]
    assert within_kl(points, 0.3) is points[3]


def test_a_step_that_does_not_fit_keeps_no_smaller_one_from_being_taken() -> None:
    points = frontier({**FORMS, "head": [Form(4, 64, 100, 1.0), Form(8, 64, 180, 0.0)]})
    tight = within_bytes(points, 259)
    assert (tight.nbytes, round(tight.kl, 9)) == (190, 1.1)
    assert tight.forms["head"].bits == 4


def test_a_budget_that_nothing_meets_names_what_comes_nearest() -> None:
    points = frontier(FORMS)
    with pytest.raises(StageError, match=r"the smallest has 0\.0 MB at a divergence of 2\.3") as smallest:
        within_bytes(points, 169)
    with pytest.raises(StageError, match=r"the closest diverges by 0\.1"):
        within_kl(points, 0.09)
    assert smallest.value.exit_code == 3


@pytest.fixture(scope="module")
def data(tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copyfile(tiny_tools_file, folder / "tools.json")
    lines = [
        {
            "id": f"t{celsius}",
            "utterance": f"set the driver side to {celsius} degrees",
            "calls": [
                {"name": "climate_set_temperature", "arguments": {"zone": "driver", "celsius": celsius}}
            ],
            "lang": "en",
        }
        for celsius in range(16, 28)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return folder


def rounded(
    checkpoint: Path, data: Path, folder: Path, objective: Objective, bits: tuple[int, ...] = (4, 8)
) -> dict[str, object]:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    return dict(
        round_weights(checkpoint, [data], SYSTEM, 10, objective, bits, 64, None, out, scratch, silent)
    )


def test_the_graph_multiplies_by_what_was_chosen(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    figures = rounded(tiny_checkpoint, data, tmp_path, Objective())
    forms = figures["forms"]
    assert isinstance(forms, dict)
    assert len(forms) == 9
    out = tmp_path / "onnx"
    out.mkdir()
    exported = export_checkpoint(tiny_checkpoint, out, "int4", 64, 64, silent, rounded=tmp_path / "out")
    assert int(exported["weight_bytes"]) >= int(str(figures["matrix_bytes"]))
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tensors = dict(model.named_parameters())
    matrices = Rounded(tmp_path / "out")
    with torch.no_grad():
        for name, form in forms.items():
            parts = {
                "qkv_proj": ("q_proj", "k_proj", "v_proj"),
                "gate_up_proj": ("gate_proj", "up_proj"),
            }.get(stem := name.split(".")[-2], (stem,))
            targets = [tensors[name.replace(stem, part)] for part in parts]
            rows, columns = sum(len(target) for target in targets), targets[0].shape[1]
            blocks, bits, size = matrices.matrix(name, rows, columns)
            assert (bits, size) == (form["bits"], form["block_size"])
            values = torch.from_numpy(unpacked_blocks(blocks, columns, bits).copy())
            for target, part in zip(targets, values.split([len(t) for t in targets]), strict=True):
                assert float((target - part).abs().max()) < 0.5
                target.copy_(part)
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.array([TOKENS]),
        "attention_mask": np.ones((1, len(TOKENS)), np.int64),
    }
    for value in session.get_inputs()[2:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    (logits,) = session.run(["logits"], feeds)
    # Activations are rounded too, to 8 bits.
    assert np.abs(logits[0, 0] - expected[-1]).max() < 0.1 * np.abs(expected[-1]).max()


def test_int8_has_8_bits_alone_and_refuses_what_was_rounded_for_int4(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    figures = rounded(tiny_checkpoint, data, tmp_path / "eight", Objective(budget_bytes=10**6), (8,))
    forms = figures["forms"]
    assert isinstance(forms, dict)
    assert {tried["bits"] for form in forms.values() for tried in form["tried"]} == {8}
    plain = tmp_path / "plain"
    out = tmp_path / "onnx"
    for folder, matrices in ((plain, None), (out, tmp_path / "eight" / "out")):
        folder.mkdir()
        export_checkpoint(tiny_checkpoint, folder, "int8", 32, 64, silent, rounded=matrices)
    assert (out / "model.onnx.data").read_bytes() != (plain / "model.onnx.data").read_bytes()
    rounded(tiny_checkpoint, data, tmp_path / "mixed", Objective())
    (tmp_path / "refused").mkdir()
    with pytest.raises(ExportError, match="round for int8, or export int4"):
        export_checkpoint(
            tiny_checkpoint, tmp_path / "refused", "int8", 32, 64, silent, rounded=tmp_path / "mixed" / "out"
        )


def as_read(file: Path) -> int:
    """Bytes of all matrices where scales are in float32, as ONNX Runtime multiplies with them."""
    tensors = load_file(file)
    assert {tensors[name].dtype for name in tensors if name.endswith(".scales")} == {np.dtype(np.float16)}
    return sum(each.size * (4 if name.endswith(".scales") else 1) for name, each in tensors.items())


def test_more_bytes_are_closer_and_the_choice_repeats(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    small = rounded(tiny_checkpoint, data, tmp_path / "small", Objective(budget_bytes=60_000))
    again = rounded(tiny_checkpoint, data, tmp_path / "again", Objective(budget_bytes=60_000))
    large = rounded(tiny_checkpoint, data, tmp_path / "large", Objective(budget_bytes=80_000))
    assert again == small
    assert (tmp_path / "again" / "out" / ROUNDED).read_bytes() == (
        tmp_path / "small" / "out" / ROUNDED
    ).read_bytes()
    assert float(str(large["expected_kl"])) < float(str(small["expected_kl"]))
    assert int(str(small["matrix_bytes"])) <= 60_000 < int(str(large["matrix_bytes"])) <= 80_000
    assert int(str(small["matrix_bytes"])) == as_read(tmp_path / "small" / "out" / ROUNDED)
    with pytest.raises(StageError, match="raise budget_bytes"):
        rounded(tiny_checkpoint, data, tmp_path / "none", Objective(budget_bytes=10_000))


def test_a_budget_of_divergence_spends_as_few_bytes(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    wide = rounded(tiny_checkpoint, data, tmp_path / "wide", Objective(minimize="bytes", budget_kl=1.0))
    narrow = rounded(tiny_checkpoint, data, tmp_path / "narrow", Objective(minimize="bytes", budget_kl=0.01))
    assert int(str(wide["matrix_bytes"])) < int(str(narrow["matrix_bytes"]))
    assert float(str(narrow["expected_kl"])) <= 0.01


def test_too_few_conversations_are_refused(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    line = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "train.jsonl").write_text("\n".join([line] * 20), encoding="utf-8")
    with pytest.raises(DataError, match="1 different ones, and calibration needs 8"):
        rounded(tiny_checkpoint, tmp_path, tmp_path / "x", Objective())
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"train\.jsonl"):
        rounded(tiny_checkpoint, tmp_path, tmp_path / "y", Objective())


def test_a_model_that_puts_out_no_numbers_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(llama, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        list(sweep(Layers(folder), batches(CONVERSATIONS), 0, tmp_path, silent))


def test_matrices_of_no_use_are_refused(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    rounded(tiny_checkpoint, data, tmp_path, Objective())
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(ExportError, match="cockpit round"):
        Rounded(tmp_path)
    tensors = load_file(tmp_path / "out" / ROUNDED)
    Rounded(tmp_path / "out").matrix(name, 64, 128)
    with pytest.raises(ExportError, match="round this very checkpoint"):
        Rounded(tmp_path / "out").matrix(name, 64, 256)
    with pytest.raises(ExportError, match="round this very checkpoint"):
        Rounded(tmp_path / "out").matrix("another", 64, 128)
    for value in (np.nan, np.inf, 0.0, -1.0):
        scales = tensors[f"{name}.scales"].copy()
        scales[3, 0] = value
        save_file({**tensors, f"{name}.scales": scales}, tmp_path / ROUNDED)
        with pytest.raises(ExportError, match="scales that are not positive numbers"):
            Rounded(tmp_path).matrix(name, 64, 128)
    (tmp_path / ROUNDED).write_bytes((tmp_path / "out" / ROUNDED).read_bytes()[:-100])
    with pytest.raises(ExportError, match="rounded"):
        Rounded(tmp_path)
