"""The reader of adapter files: what ONNX Runtime reads, without a copy, and no way out of the bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime import AdapterFormat, OrtValue

from runtime.adapter_file import read_tensors

VALUES: dict[str, NDArray[np.generic]] = {
    "model.layers.0.A": np.arange(15, dtype=np.float32).reshape(5, 3),
    "b": np.arange(-4, 4, dtype=np.float16).reshape(2, 4),
    "ü.int8": np.arange(-3, 4, dtype=np.int8).reshape(1, 7),
    "scales": np.linspace(0, 1, 3, dtype=np.float32),
}


def written(folder: Path, values: dict[str, NDArray[np.generic]]) -> Path:
    adapter = AdapterFormat()
    adapter.set_parameters({name: OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    adapter.export_adapter(str(folder / "x.onnx_adapter"))
    return folder / "x.onnx_adapter"


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    return written(tmp_path, VALUES).read_bytes()


def refused(raw: bytes | bytearray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_tensors(memoryview(raw))


def test_what_onnx_runtime_reads_without_a_copy(tmp_path: Path) -> None:
    file = written(tmp_path, VALUES)
    theirs = AdapterFormat.read_adapter(str(file)).get_parameters()
    raw = file.read_bytes()
    whole, tensors = np.frombuffer(raw, np.uint8), read_tensors(memoryview(raw))
    assert tensors.keys() == theirs.keys() == VALUES.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (VALUES[name].dtype, VALUES[name].shape)
        assert tensor.tobytes() == theirs[name].numpy().tobytes() == VALUES[name].tobytes()
        assert np.shares_memory(tensor, whole)
        assert tensor.flags.aligned
        assert tensor.flags.c_contiguous
        assert not tensor.flags.writeable


def test_a_file_cut_short_anywhere(raw: bytes) -> None:
    length = len(raw.rstrip(b"\0"))
    assert length > 300
    for end in range(length):
        refused(raw[:end], "cut short|no adapter file")


def test_no_changed_byte_leads_out(raw: bytes) -> None:
    """Whatever a byte says, there are tensors within the bytes, or a refusal of one kind."""
    refusals = 0
    for at in range(len(raw)):
        for value in (0, 1, 4, 0x7F, 0x80, 0xFF):
            changed = bytearray(raw)
            changed[at] = value
            whole = np.frombuffer(changed, np.uint8)
            try:
                tensors = read_tensors(memoryview(changed))
            except ValueError:
                refusals += 1
                continue
            assert all(np.shares_memory(tensor, whole) for tensor in tensors.values())
    assert refusals > 400


def test_another_file_and_another_version(raw: bytes) -> None:
    refused(b"", "no adapter file")
    refused(raw[:4] + b"ORTM" + raw[8:], "no adapter file of ONNX Runtime")
    changed = bytearray(raw)
    adapter = struct.unpack_from("<I", raw)[0]
    vtable = adapter - struct.unpack_from("<i", raw, adapter)[0]
    version = adapter + struct.unpack_from("<H", raw, vtable + 4)[0]
    struct.pack_into("<i", changed, version, 2)
    refused(changed, "its format version is 2; this runtime knows 1")
    struct.pack_into("<i", changed, version, 1)
    struct.pack_into("<H", changed, vtable + 4 + 2 * 3, 0)
    refused(changed, "a field is missing")


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    raw = written(tmp_path, {"aa": VALUES["b"], "ab": VALUES["b"]}).read_bytes()
    assert raw.count(b"ab\0") == 1
    refused(raw.replace(b"ab\0", b"aa\0"), "'aa' is in it twice")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((2, 2)), r"'x' is of a type that no adapter has \(11\)"),
        (np.ones((1, 1, 2), np.float32), "'x' has 3 dimensions"),
        (np.ones((0, 2), np.float32), r"'x' of shape \[0, 2\] has 0 bytes"),
    ],
)
def test_tensors_that_no_adapter_has(values: NDArray[np.generic], said: str, tmp_path: Path) -> None:
    refused(written(tmp_path, {"x": values}).read_bytes(), said)


def test_a_shape_that_its_bytes_do_not_fill(raw: bytes) -> None:
    shape = struct.pack("<qq", 5, 3)
    assert raw.count(shape) == 1
    for rows, columns in ((5, 4), (3, 3), (-5, -3), (2**62, 8)):
        refused(raw.replace(shape, struct.pack("<qq", rows, columns)), "has 60 bytes")
