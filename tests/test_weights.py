"""Reading and writing safetensors: against the reference library, and against damage."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import save_file

from export.weights import INDEX, SINGLE, Checkpoint, SafetensorsWriter
from runtime.errors import CheckpointError

FORMAT = {"format": "pt"}


def header_and_data(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tensors of three types, written by the reference library."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(5, 3, generator=generator),
        "b": torch.randn(4, 2, generator=generator).to(torch.bfloat16),
        "c": torch.randn(7, generator=generator).to(torch.float16),
    }
    save_file(tensors, tmp_path / SINGLE, metadata=FORMAT)
    return tmp_path


def test_reads_what_the_reference_library_wrote(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    expected = load_file(folder / SINGLE)
    assert set(checkpoint.names) == set(expected)
    assert checkpoint.metadata == FORMAT
    for name, values in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == values.dtype == checkpoint.dtype(name)
        assert read.shape == values.shape == checkpoint.shape(name)
        assert read.tobytes() == values.tobytes()
        np.testing.assert_array_equal(checkpoint.read_float32(name), values.astype(np.float32))


def test_reads_rows(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    whole = checkpoint.read("b")
    assert checkpoint.read("b", 1, 3).tobytes() == whole[1:3].tobytes()
    assert checkpoint.read("b", 3, 99).tobytes() == whole[3:].tobytes()
    assert checkpoint.read("b", 9, 99).shape == (0, 2)


def test_reads_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names) == {"a", "b"}
    np.testing.assert_array_equal(checkpoint.read("a"), np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "one.safetensors", "c": "one.safetensors"}, "promises tensors that no shard has: c"),
        ({"a": "gone.safetensors"}, 'shard "gone.safetensors"'),
        ({"a": "../one.safetensors"}, 'shard "../one.safetensors"'),
        ({"a": "one.safetensors", "b": "same.safetensors"}, 'tensor "a" is stored twice'),
        ([], "no readable weight_map"),
    ],
)
def test_refuses_a_wrong_index(tmp_path: Path, weight_map: object, words: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "same.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cut short"),
        (b"\x05\0\0", "cut short"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "cut short"),
        (header_and_data(b"{nonsense", b""), "damaged"),
        (header_and_data(b"\xff\xfe\x00", b""), "damaged"),
        (header_and_data(b"[" * 100_000, b""), "damaged"),
        (header_and_data([], b""), "not a JSON object"),
        (header_and_data({"__metadata__": {"a": 1}}, b""), "__metadata__"),
        (header_and_data({"a": 3}, b""), 'damaged at "a"'),
        (header_and_data({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4), 'damaged at "a"'),
        (header_and_data({"a": entry("F32", [True], 0, 4)}, b"\0" * 4), 'damaged at "a"'),
        (header_and_data({"a": entry("F32", [1], 4, 0)}, b"\0" * 4), 'damaged at "a"'),
        (header_and_data({"a": entry("F32", [2], 0, 4)}, b"\0" * 4), "has not its shape's size"),
        (header_and_data({"a": entry("F4", [2], 0, 1)}, b"\0"), "has type F4; known: F64"),
        (header_and_data({"a": entry("F32", [1], 0, 4)}, b"\0" * 3), "describes"),
        (header_and_data({"a": entry("F32", [1], 0, 4)}, b"\0" * 5), "describes"),
        (header_and_data({"a": entry("F32", [1], 4, 8)}, b"\0" * 8), "leaves a hole"),
        (
            header_and_data({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"\0" * 6),
            '"b" overlaps',
        ),
        (
            header_and_data(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":0}', b""),
            '"a" is stored twice',
        ),
    ],
)
def test_refuses_a_damaged_file(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / SINGLE).write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    assert words in str(caught.value)


def test_refuses_a_folder_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save the model as safetensors"):
        Checkpoint(tmp_path)


def test_refuses_an_unknown_name(folder: Path) -> None:
    with pytest.raises(CheckpointError, match='no tensor "d"'):
        Checkpoint(folder).read("d")


def test_notices_a_file_cut_after_opening(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match="ends inside tensor"):
        checkpoint.read(checkpoint.names[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_what_is_not_finite(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    values = torch.ones(3, 4)
    values[2, 1] = value
    save_file(
        {"fine": torch.full((2,), torch.finfo(dtype).max, dtype=dtype), "w": values.to(dtype)},
        tmp_path / SINGLE,
    )
    checkpoint = Checkpoint(tmp_path)
    checkpoint.read("fine")
    with pytest.raises(CheckpointError, match=r'tensor "w" of .* has NaN or infinite'):
        checkpoint.read("w")


def test_float32_is_for_float_weights(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3), "wide": torch.ones(1, dtype=torch.float64)}, tmp_path / SINGLE)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("ids").tolist() == [0, 1, 2]
    for name in ("ids", "wide"):
        with pytest.raises(CheckpointError, match="must be F32, F16 or BF16"):
            checkpoint.read_float32(name)


def test_reading_holds_one_tensor(tmp_path: Path) -> None:
    save_file({f"t{i}": torch.zeros(1 << 20) for i in range(8)}, tmp_path / SINGLE)
    tracemalloc.start()
    checkpoint = Checkpoint(tmp_path)
    for name in checkpoint.names:
        checkpoint.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * (4 << 20), "eight tensors of 4 MiB must not be held at once"


SHAPES = st.lists(st.integers(0, 5), max_size=3)
TYPES = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8])


@given(st.lists(st.tuples(SHAPES, TYPES), max_size=5))
def test_the_reference_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, declared: list[tuple[list[int], type]]
) -> None:
    path = tmp_path_factory.mktemp("written") / SINGLE
    tensors = {
        f"t{i}": np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
        for i, (shape, dtype) in enumerate(declared)
    }
    with SafetensorsWriter(path, {n: (t.dtype, t.shape) for n, t in tensors.items()}, FORMAT) as writer:
        for name, values in tensors.items():
            writer.append(name, values)
    expected = load_file(path)
    assert set(expected) == set(tensors)
    for name, values in tensors.items():
        assert expected[name].dtype == values.dtype
        assert expected[name].shape == values.shape
        assert expected[name].tobytes() == values.tobytes()
        assert Checkpoint(path.parent).read(name).tobytes() == values.tobytes()


FLOAT = np.dtype(np.float32)


def test_rows_may_be_appended_in_pieces(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with SafetensorsWriter(tmp_path / SINGLE, {"a": (FLOAT, (4, 3)), "b": (FLOAT, (3, 4))}, {}) as writer:
        writer.append("a", values[:1])
        writer.append("a", values[1:])
        writer.append("b", values.T)  # not contiguous
    np.testing.assert_array_equal(load_file(tmp_path / SINGLE)["a"], values)
    np.testing.assert_array_equal(load_file(tmp_path / SINGLE)["b"], values.T)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("b", np.zeros(3, np.float32), "out of turn"),
        ("a", np.zeros(3, np.float64), "declared"),
        ("a", np.zeros(5, np.float32), "declared"),
    ],
)
def test_refuses_what_was_not_declared(tmp_path: Path, name: str, values: np.ndarray, words: str) -> None:
    declared = {"a": (FLOAT, (4,)), "b": (FLOAT, (3,))}
    with pytest.raises(ValueError, match=words), SafetensorsWriter(tmp_path / SINGLE, declared, {}) as writer:
        writer.append(name, values)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_tensor_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not written whole"),
        SafetensorsWriter(tmp_path / SINGLE, {"a": (FLOAT, (4,))}, {}) as writer,
    ):
        writer.append("a", np.zeros(3, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / SINGLE, {"a": (FLOAT, (1,))}, {}) as writer:
        writer.append("a", np.zeros(1, np.float32))
        assert not (tmp_path / SINGLE).exists()
    assert [file.name for file in tmp_path.iterdir()] == [SINGLE]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / f"{SINGLE}.partial").symlink_to("/dev/full")
    with (
        pytest.raises(CheckpointError, match="No space left"),
        SafetensorsWriter(tmp_path / SINGLE, {"a": (FLOAT, (1 << 16,))}, {}) as writer,
    ):
        writer.append("a", np.zeros(1 << 16, np.float32))
    assert list(tmp_path.iterdir()) == []
