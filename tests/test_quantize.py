"""Block-wise rounding: its error bound, and its layout as ONNX Runtime reads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.quantize import (
    SMALLEST_SCALE,
    Blocks,
    compact,
    covering_scales,
    quantize_blocks,
    quantize_channels,
    short_scales,
)
from runtime.errors import ExportError


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes along the last axis → values, low half first."""
    if bits == 8:
        return packed
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)


def dequantize(blocks: Blocks, columns: int, bits: int) -> NDArray[np.float64]:
    """The matrix that the layout's documentation describes, in float64."""
    values = unpack(blocks.packed, bits).astype(np.float64)
    zeros = np.full(blocks.scales.shape, 2.0 ** (bits - 1))
    if blocks.zero_points is not None:
        zeros = unpack(blocks.zero_points, bits)[:, : blocks.scales.shape[1]].astype(np.float64)
    matrix = (values - zeros[:, :, None]) * blocks.scales.astype(np.float64)[:, :, None]
    return matrix.reshape(len(matrix), -1)[:, :columns]


WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32) | st.floats(-1, 1, width=32),
)


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.booleans())
def test_every_weight_is_within_half_a_scale(
    weight: NDArray[np.float32], bits: int, block_size: int, symmetric: bool
) -> None:
    blocks = quantize_blocks(weight, bits, block_size, symmetric)
    error = np.abs(dequantize(blocks, weight.shape[1], bits) - weight)
    half = np.repeat(blocks.scales.astype(np.float64) / 2, block_size, axis=1)[:, : weight.shape[1]]
    assert (error <= half * (1 + 1e-4)).all()


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([4, 8]), st.booleans())
def test_zero_stays_zero(weight: NDArray[np.float32], bits: int, symmetric: bool) -> None:
    weight[:, ::2] = 0
    blocks = quantize_blocks(weight, bits, 16, symmetric)
    assert (dequantize(blocks, weight.shape[1], bits)[:, ::2] == 0).all()


@given(
    arrays(
        np.float32, 20, elements=st.floats(2.0**-126, 2.0**127, width=32) | st.floats(2.0**-20, 1, width=32)
    )
)
def test_a_scale_is_rounded_up_to_what_two_bytes_hold(scales: NDArray[np.float32]) -> None:
    nearest, short = short_scales(scales), covering_scales(scales)
    inside = (scales >= 2.0**-18) & (scales <= 65504)
    assert (short[~inside] == scales[~inside]).all()
    assert (nearest[~inside] == scales[~inside]).all()
    assert (abs(nearest - scales) <= scales * np.where(scales < 2.0**-14, 0.01, 2.0**-11)).all()
    assert compact(nearest[inside]).dtype == np.float16
    assert (short >= scales).all()
    assert (short <= scales * np.where(scales < 2.0**-14, 1.02, 1.001)).all()
    assert compact(short[inside]).dtype == np.float16
    np.testing.assert_array_equal(compact(short).astype(np.float32), short)


@pytest.mark.parametrize("beyond", [2.0**-30, 1e6])
def test_a_matrix_with_a_scale_that_float16_has_not_keeps_four_bytes(beyond: float) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    assert compact(quantize_blocks(weight, 8, 32, symmetric=True).scales).dtype == np.float16
    weight[2, 32:] *= np.float32(beyond)
    blocks = quantize_blocks(weight, 4, 32, symmetric=False)
    assert compact(blocks.scales).dtype == np.float32
    error = np.abs(dequantize(blocks, 64, 4) - weight)
    assert (error <= np.repeat(blocks.scales, 32, axis=1) * 0.5001).all()


def test_shapes() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 80)).astype(np.float32)
    symmetric = quantize_blocks(weight, 8, 32, symmetric=True)
    assert symmetric.packed.shape == (5, 3, 32)
    assert symmetric.scales.shape == (5, 3)
    assert symmetric.zero_points is None
    asymmetric = quantize_blocks(weight, 4, 32, symmetric=False)
    assert asymmetric.packed.shape == (5, 3, 16)
    assert asymmetric.zero_points is not None
    assert asymmetric.zero_points.shape == (5, 2)


def test_one_sided_blocks_use_all_integers() -> None:
    weight = np.linspace(1, 2, 32, dtype=np.float32)[None]
    blocks = quantize_blocks(weight, 4, 32, symmetric=False)
    assert unpack(blocks.packed, 4).max() == 15
    assert blocks.zero_points is not None
    assert unpack(blocks.zero_points, 4)[0, 0] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("symmetric", [True, False])
def test_refuses_a_scale_that_is_not_finite(value: float, symmetric: bool) -> None:
    weight = np.ones((2, 32), np.float32)
    weight[1, 3] = value
    with pytest.raises(ExportError, match="NaN or infinite"), np.errstate(invalid="ignore"):
        quantize_blocks(weight, 4, 16, symmetric)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block_size"), [(64, 16), (96, 32), (80, 32), (40, 64)])
def test_onnxruntime_reads_the_layout(bits: int, symmetric: bool, columns: int, block_size: int) -> None:
    """MatMulNBits at accuracy level 0, and GatherBlockQuantized, against the float64 matrix."""
    random = np.random.default_rng(columns)
    weight = random.normal(size=(24, columns)).astype(np.float32) + np.float32(0.3)
    blocks = quantize_blocks(weight, bits, block_size, symmetric)
    expected = dequantize(blocks, columns, bits)
    x = random.normal(size=(3, columns)).astype(np.float32)
    ids = np.array([[0, 23, 7]])
    product, rows = run_both(blocks, bits, block_size, x, ids)
    exact = x.astype(np.float64) @ expected.T
    assert np.abs(product - exact).max() < 1e-5 * np.abs(exact).max()
    np.testing.assert_allclose(rows[:, :, :columns], expected[ids], rtol=1e-6, atol=1e-7)


def run_both(
    blocks: Blocks, bits: int, block_size: int, x: NDArray[np.float32], ids: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    constants = {
        "packed": blocks.packed,
        "table": blocks.packed.reshape(len(blocks.packed), -1),
        "scales": blocks.scales,
    }
    zeros = []
    if blocks.zero_points is not None:
        constants["zeros"], zeros = blocks.zero_points, ["zeros"]
    multiply = helper.make_node(
        "MatMulNBits",
        ["x", "packed", "scales", *zeros],
        ["product"],
        domain="com.microsoft",
        N=len(blocks.packed),
        K=x.shape[1],
        bits=bits,
        block_size=block_size,
        accuracy_level=0,
    )
    gather = helper.make_node(
        "GatherBlockQuantized",
        ["table", "ids", "scales", *zeros],
        ["rows"],
        domain="com.microsoft",
        bits=bits,
        block_size=block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    graph = helper.make_graph(
        [multiply, gather],
        "both",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ids.shape),
        ],
        [
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", "m"]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, "n", "k"]),
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    product, rows = session.run(None, {"x": x, "ids": ids})
    return product, rows


@given(WEIGHTS)
def test_rows_of_one_scale_keep_every_weight_to_half_of_it(weight: NDArray[np.float32]) -> None:
    quantized, scales = quantize_channels(weight)
    assert quantized.dtype == np.int8
    assert np.abs(quantized.astype(int)).max(initial=0) <= 127
    error = np.abs(quantized * scales.astype(np.float64)[:, None] - weight)
    assert (error <= 0.5001 * scales[:, None] + SMALLEST_SCALE * 127).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_no_numbers_is_refused(value: float) -> None:
    with pytest.raises(ExportError, match="NaN or infinite"):
        quantize_channels(np.array([[1.0, value]], np.float32))
