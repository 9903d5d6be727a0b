"""The error of rounding on an adapter's update: measured apart from that on the weight, and exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_merge import make_adapter, make_base, merged

from export.quantize import quantize_blocks, unpacked_blocks
from export.rounded import ROUNDED
from pipeline.rounding.apart import Trained, errors_apart
from pipeline.rounding.record import Norms
from runtime.errors import AdapterError

QKV = ("q_proj", "k_proj", "v_proj")


def stacked(folder: Path, layer: int) -> np.ndarray:
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensors[f"model.layers.{layer}.self_attn.{part}.weight"] for part in QKV])


def rounded(folder: Path, weights: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """A rounding folder, and what its matrices stand for."""
    folder.mkdir()
    tensors, values = {}, {}
    for name, weight in weights.items():
        blocks = quantize_blocks(weight, bits, 16, bits == 8)
        tensors |= {f"{name}.packed": blocks.packed, f"{name}.scales": blocks.scales}
        if blocks.zero_points is not None:
            tensors[f"{name}.zero_points"] = blocks.zero_points
        values[name] = unpacked_blocks(blocks, weight.shape[1], bits)
    save_file(tensors, folder / ROUNDED)
    return values


def names() -> list[str]:
    return [f"model.layers.{layer}.self_attn.qkv_proj.weight" for layer in range(3)]


def test_norms_are_those_of_the_matrices_themselves(tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base"), tmp_path / "out"
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    merged(base, adapter, out)
    weights = {name: stacked(out, layer) for layer, name in enumerate(names())}
    values = rounded(tmp_path / "rounded", weights, 4)
    found = errors_apart(out, Trained(base, adapter), tmp_path / "rounded")
    assert list(found) == names()
    for layer, name in enumerate(names()):
        difference, error = weights[name] - stacked(base, layer), values[name] - weights[name]
        assert np.abs(difference[48:72]).max() == 0
        weight_square = error_square = update_square = projected = 0.0
        # Keys are not changed: neither their weights nor their error count.
        for part in (slice(0, 48), slice(72, 96)):
            left, size, right = np.linalg.svd(difference[part].astype(np.float64), full_matrices=False)
            assert size[4] < 1e-4 * size[3]
            left, right = left[:, :4] @ left[:, :4].T, right[:4].T @ right[:4]
            weight_square += float(np.square(weights[name][part]).sum())
            error_square += float(np.square(error[part]).sum())
            update_square += float(np.square(size[:4]).sum())
            projected += float(np.square(left @ error[part] @ right).sum())
        wanted = np.sqrt([weight_square, error_square, update_square, projected])
        np.testing.assert_allclose(list(found[name].values()), wanted, rtol=1e-3)
        assert found[name]["update_error"] < 0.5 * found[name]["error"]


def test_an_update_that_rounding_drowns_is_an_error_of_all_of_it(tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base"), tmp_path / "out"
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    merged(base, adapter, out)
    # What is rounded is the base: all of BA is lost, and little else at 8 bits.
    rounded(tmp_path / "rounded", {name: stacked(base, layer) for layer, name in enumerate(names())}, 8)
    for norms in errors_apart(out, Trained(base, adapter), tmp_path / "rounded").values():
        assert norms["update_error"] == pytest.approx(norms["update"], rel=1e-2)
        assert norms["error"] == pytest.approx(norms["update"], rel=1e-2)
        assert Norms(**norms).weight > norms["update"]


def test_dora_is_no_product_alone_and_is_left_out(tmp_path: Path) -> None:
    base, out = make_base(tmp_path / "base"), tmp_path / "out"
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    merged(base, adapter, out)
    rounded(tmp_path / "rounded", {name: stacked(out, layer) for layer, name in enumerate(names())}, 4)
    assert errors_apart(out, Trained(base, adapter), tmp_path / "rounded") == {}


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: values[:, :-1].copy() for name, values in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    rounded(tmp_path / "rounded", {name: stacked(base, layer) for layer, name in enumerate(names())}, 4)
    with pytest.raises(AdapterError, match="does not fit"):
        errors_apart(base, Trained(base, adapter), tmp_path / "rounded")
