"""Fingerprints: what changes them and what does not."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.fingerprint import FINGERPRINT, fingerprint, read_fingerprint
from runtime.errors import CheckpointError

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(8, dtype=np.float16).reshape(2, 2, 2)


def single(folder: Path, **tensors: np.ndarray) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir()
    save_file({"b": B}, folder / "model-00001-of-00002.safetensors")
    save_file({"a": A}, folder / "model-00002-of-00002.safetensors")
    index = (
        '{"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}}'
    )
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def test_shards_and_their_order_do_not_matter(tmp_path: Path) -> None:
    one = fingerprint(single(tmp_path / "single", a=A, b=B))
    assert one == fingerprint(sharded(tmp_path / "sharded"))
    assert one.tensors["a"].startswith("F32 3x4 ")
    assert one.tensors["b"].startswith("F16 2x2x2 ")


@pytest.mark.parametrize(
    "changed",
    [
        {"a": A + np.float32(1), "b": B},
        {"a": A.reshape(4, 3), "b": B},
        {"a": A.view(np.int32), "b": B},
        {"a2": A, "b": B},
        {"a": A},
    ],
    ids=["value", "shape", "type", "name", "missing"],
)
def test_everything_about_a_weight_matters(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    assert (
        fingerprint(single(tmp_path / "was", a=A, b=B)).digest
        != fingerprint(single(tmp_path / "is", **changed)).digest
    )


def test_large_tensors_are_digested_in_pieces(tmp_path: Path) -> None:
    rows = np.arange(3 * (1 << 21), dtype=np.float32).reshape(3, -1)
    again = single(tmp_path / "large", a=rows, scalar=np.array(2.0, np.float32))
    digest = fingerprint(again).tensors["a"].split()[-1]
    assert digest == hashlib.sha256(rows.tobytes()).hexdigest()
    assert fingerprint(again).tensors["scalar"].startswith("F32 scalar ")


def test_a_fingerprint_survives_a_file_and_damage_is_noticed(tmp_path: Path) -> None:
    was = fingerprint(single(tmp_path / "base", a=A, b=B))
    file = tmp_path / FINGERPRINT
    was.write(file)
    assert read_fingerprint(file) == was
    file.write_text(file.read_text().replace("3x4", "4x3"))
    with pytest.raises(CheckpointError, match="is damaged: its digest is not that"):
        read_fingerprint(file)
    file.write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_fingerprint(file)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'tensor "a".*NaN'):
        fingerprint(single(tmp_path / "nan", a=np.array([1.0, np.nan], np.float32)))
