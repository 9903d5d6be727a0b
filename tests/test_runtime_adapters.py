"""Adapter files: what is written, and what is refused by whom, with every problem named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime import AdapterFormat, OrtValue

from export.adapter import Factors, write_adapter
from runtime.adapters import load_adapter
from runtime.errors import BundleError, ExportError
from runtime.sites import SCALES, Belonging, FactorType, Part, Site, Sites

Q, K, DOWN = (f"model.layers.0.{name}_proj.weight" for name in ("q", "k", "down"))
SITES = Sites(
    1,
    4,
    "float32",
    (
        Site("qk.A", "qk.B", 5, (Part(Q, 6, "F32 6x5 aa"), Part(K, 3, "F32 3x5 bb"))),
        Site("down.A", "down.B", 7, (Part(DOWN, 5, "F32 5x7 cc"),)),
    ),
)
BELONGS = Belonging(
    {Q: "F32 6x5 aa", K: "F32 3x5 bb", DOWN: "F32 5x7 cc", "model.norm.weight": "F32 5 dd"}, "t", "c"
)


def factors(tensor: str, rows: int, columns: int, rank: int, seed: int = 0) -> Factors:
    rng = np.random.default_rng(seed)
    return Factors(
        tensor,
        rng.normal(size=(rank, columns)).astype(np.float32),
        rng.normal(size=(rows, rank)).astype(np.float32),
    )


UPDATES = (factors(DOWN, 5, 7, 1, 1), factors(K, 3, 5, 2, 2), factors(Q, 6, 5, 3, 3))


def written(out: Path, dtype: FactorType = "float32", updates: tuple[Factors, ...] = UPDATES) -> Path:
    write_adapter("task", updates, SITES, BELONGS, dtype, out)
    return out / "task.onnx_adapter"


def tensors(file: Path) -> dict[str, NDArray[np.generic]]:
    found = AdapterFormat.read_adapter(str(file)).get_parameters()
    return {name: np.array(value.numpy()) for name, value in found.items()}


def rewritten(file: Path, values: dict[str, NDArray[np.generic]], **changes: Any) -> Path:
    """Other tensors under the same name, with a record that vouches for them."""
    adapter = AdapterFormat()
    adapter.set_parameters({name: OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    adapter.export_adapter(str(file))
    vouched(file, **changes)
    return file


def vouched(file: Path, **changes: Any) -> None:
    """Make the record's digest and size those of the file."""
    record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    raw = file.read_bytes()
    record |= {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw), **changes}
    file.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")


def refusal(file: Path, sites: Sites = SITES, tokenizer: str = "t", template: str = "c") -> BundleError:
    with pytest.raises(BundleError) as refused:
        load_adapter(file, sites, tokenizer, template)
    assert refused.value.exit_code == 5
    return refused.value


def unfit(updates: tuple[Factors, ...], out: Path, name: str = "task", dtype: FactorType = "float32") -> str:
    with pytest.raises(ExportError) as refused:
        write_adapter(name, updates, SITES, BELONGS, dtype, out)
    assert list(out.iterdir()) == []
    return str(refused.value)


def test_factors_side_by_side_and_on_the_diagonal(tmp_path: Path) -> None:
    adapter = load_adapter(written(tmp_path), SITES, "t", "c")
    values = adapter.values
    down, k, q = UPDATES
    assert values.keys() == {"qk.A", "qk.B", "down.A", "down.B"}
    assert np.array_equal(values["down.A"], down.a.T)
    assert np.array_equal(values["down.B"], down.b.T)
    assert values["qk.A"].shape == (5, 5)
    assert values["qk.B"].shape == (5, 9)
    x = np.random.default_rng(9).normal(size=(4, 5)).astype(np.float32)
    expected = np.concatenate([x @ q.a.T @ q.b.T, x @ k.a.T @ k.b.T], axis=1)
    assert np.allclose(x @ values["qk.A"] @ values["qk.B"], expected, atol=1e-5)
    assert (adapter.name, adapter.rank) == ("task", 3)
    assert adapter.digest == hashlib.sha256((tmp_path / "task.onnx_adapter").read_bytes()).hexdigest()


def test_a_part_without_an_update_has_no_rank(tmp_path: Path) -> None:
    adapter = load_adapter(written(tmp_path, updates=UPDATES[1:2]), SITES, "t", "c")
    assert adapter.values.keys() == {"qk.A", "qk.B"}
    b = adapter.values["qk.B"]
    assert b.shape == (2, 9)
    assert not b[:, :6].any()


def test_the_record_names_only_what_is_changed(tmp_path: Path) -> None:
    record = write_adapter("task", UPDATES[1:], SITES, BELONGS, "int8", tmp_path)
    assert record.belongs.tensors == {K: "F32 3x5 bb", Q: "F32 6x5 aa"}
    text = json.loads((tmp_path / "task.json").read_text(encoding="utf-8"))
    assert text == dataclasses.asdict(record)
    assert (record.rank, record.dtype, record.size) == (
        3,
        "int8",
        (tmp_path / "task.onnx_adapter").stat().st_size,
    )


def test_what_it_belongs_to_has_one_digest() -> None:
    again = Belonging(dict(reversed(BELONGS.tensors.items())), "t", "c")
    assert again.digest == BELONGS.digest
    assert dataclasses.replace(BELONGS, template="d").digest != BELONGS.digest


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    wrong = factors(Q, 6, 5, 2)
    wrong.a[0, 0] = np.nan
    text = unfit(
        (
            wrong,
            factors(Q, 6, 5, 2),
            factors(K, 3, 4, 2),
            factors(DOWN, 5, 7, 5),
            factors("model.norm.weight", 5, 5, 1),
        ),
        tmp_path,
    )
    assert text.splitlines()[1:] == [
        '  - "model.norm.weight" is no weight that can be adapted here',
        f'  - "{Q}" is updated twice',
        f'  - "{Q}" has values that are not finite or beyond 3.40282e+38',
        f'  - "{K}" has factors of [3, 2] and [2, 4]; the weight is [3, 5]',
        f'  - "{DOWN}" has rank 5; the graph takes 1 to 4',
    ]


@pytest.mark.parametrize(
    ("updates", "name", "dtype", "said"),
    [
        ((), "task", "float32", "it updates nothing"),
        (UPDATES, "../task", "float32", "a name must be of letters"),
        ((factors("model.layers.9.q_proj.weight", 6, 5, 1),), "task", "float32", "there is no digest of"),
        (
            (dataclasses.replace(UPDATES[0], b=np.full((5, 1), 7e4, np.float32)),),
            "task",
            "float16",
            "not finite or beyond 65504",
        ),
        (
            (dataclasses.replace(UPDATES[0], output_scale=np.ones(5, np.float32)),),
            "task",
            "float32",
            r"scales the output \(DoRA\), which the graph cannot; merge the adapter",
        ),
        (
            (dataclasses.replace(UPDATES[0], bias=np.ones(5, np.float32)),),
            "task",
            "float32",
            "adds a bias, which the graph cannot; merge the adapter",
        ),
    ],
)
def test_what_cannot_be_written(
    updates: tuple[Factors, ...], name: str, dtype: FactorType, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said):
        write_adapter(name, updates, SITES, BELONGS, dtype, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_base_is_not_written(tmp_path: Path) -> None:
    other = dataclasses.replace(BELONGS, tensors=BELONGS.tensors | {K: "F32 3x5 ee", DOWN: "F32 5x7 ff"})
    with pytest.raises(ExportError, match=f'another base: 2 of 3 weights differ, the first is "{K}"'):
        write_adapter("task", UPDATES, SITES, other, "float32", tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    before = written(tmp_path).read_bytes()
    with pytest.raises(ExportError, match=r"task\.onnx_adapter exists already"):
        written(tmp_path, "int8")
    assert (tmp_path / "task.onnx_adapter").read_bytes() == before


def test_an_adapter_of_another_model_is_refused_with_every_reason(tmp_path: Path) -> None:
    first = dataclasses.replace(SITES.sites[0], parts=(SITES.sites[0].parts[0], Part(K, 3, "F32 3x5 ee")))
    other = dataclasses.replace(SITES, most_rank=2, sites=(first,))
    assert refusal(written(tmp_path), other, "u", "d").problems == (
        f'"{DOWN}" is no weight that can be adapted here',
        f'it was made for another base: 1 of 3 weights differ, the first is "{K}"',
        "it was made with another tokenizer.json",
        "it was made with another chat_template.jinja",
        "its rank is 3; this graph takes 1 to 2",
    )


def test_damaged_files(tmp_path: Path) -> None:
    file = written(tmp_path)
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    assert refusal(file).problems == (f"it has {len(raw) - 1} bytes instead of {len(raw)}",)
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert refusal(file).problems == ("it was changed",)
    file.unlink()
    assert refusal(file).problems == ("it cannot be read: No such file or directory",)
    file.with_suffix(".json").unlink()
    assert "cannot read" in str(refusal(file))


@pytest.mark.parametrize("keep", [0, 3, 16, 100, 0.5, 0.9])
def test_a_file_cut_short_before_it_was_recorded(keep: float, tmp_path: Path) -> None:
    file = written(tmp_path)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(keep if keep > 1 or keep == 0 else keep * len(raw))])
    vouched(file)
    assert "cannot read the adapter" in str(refusal(file))


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda t: t.pop("down.B"), ['"down.B" is missing']),
        (lambda t: t.update({"more": t["qk.A"]}), ['"more" has no place in the graph']),
        (
            lambda t: (t.pop("qk.A"), t.pop("down.A"), t.update({"more": np.ones(3, np.float32)})),
            ['"down.A" is missing', '"qk.A" is missing', '"more" has no place in the graph'],
        ),
        (
            lambda t: t.update({"qk.A": t["qk.A"].astype(np.float16)}),
            ['"qk.A" is float16 instead of float32'],
        ),
        (
            lambda t: t.update({"qk.A": t["qk.A"][:, :4], "down.B": t["down.B"][:, :4]}),
            [
                '"qk.A" and its B have shapes [5, 4] and [5, 9]; '
                "the graph takes [5, R] and [R, 9], R from 1 to 8",
                '"down.A" and its B have shapes [7, 1] and [1, 4]; '
                "the graph takes [7, R] and [R, 5], R from 1 to 4",
            ],
        ),
        (
            lambda t: t.update(
                {"down.A": np.ones((7, 5), np.float32), "down.B": np.ones((5, 5), np.float32)}
            ),
            [
                '"down.A" and its B have shapes [7, 5] and [5, 5]; '
                "the graph takes [7, R] and [R, 5], R from 1 to 4"
            ],
        ),
        (
            lambda t: t.update({"down.A": np.ones(7, np.float32)}),
            [
                '"down.A" and its B have shapes [7] and [1, 5]; '
                "the graph takes [7, R] and [R, 5], R from 1 to 4"
            ],
        ),
        (
            lambda t: t["qk.B"].__setitem__((0, 0), np.nan),
            ['"qk.B" has values that are not finite in float32'],
        ),
        (
            lambda t: t["down.A"].__setitem__((0, 0), np.inf),
            ['"down.A" has values that are not finite in float32'],
        ),
    ],
)
def test_tensors_that_are_not_the_graphs(
    change: Callable[[dict[str, NDArray[np.generic]]], object], problems: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path)
    values = tensors(file)
    change(values)
    assert list(refusal(rewritten(file, values)).problems) == problems


def test_int8_needs_a_scale_for_each_rank(tmp_path: Path) -> None:
    file = written(tmp_path, "int8")
    values = tensors(file)
    assert values["down.A"].dtype == np.int8
    assert values[f"qk.A{SCALES}"].shape == (5,)
    values[f"qk.A{SCALES}"] = values[f"qk.A{SCALES}"][:-1]
    del values[f"down.B{SCALES}"]
    assert refusal(rewritten(file, values)).problems == (
        f'"down.B{SCALES}" is missing',
        f'"qk.A{SCALES}" must be 5 values in float32',
    )


def test_values_beyond_the_graphs_type(tmp_path: Path) -> None:
    half = dataclasses.replace(SITES, dtype="float16")
    file = written(tmp_path)
    values = tensors(file)
    values["qk.A"][0, 0] = 1e5
    assert refusal(rewritten(file, values), half).problems == (
        '"qk.A" has values that are not finite in float16',
    )


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "int8")
    values = tensors(file)
    values[f"qk.A{SCALES}"][0] = np.inf
    values[f"down.B{SCALES}"][0] = np.nan
    assert refusal(rewritten(file, values)).problems == (
        '"qk.A" has values that are not finite in float32',
        '"down.B" has values that are not finite in float32',
    )


def test_a_record_of_another_name(tmp_path: Path) -> None:
    file = written(tmp_path)
    vouched(file, name="another")
    assert refusal(file).problems == ("its record is of 'another'",)


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ExportError, match="No space left"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_zero_rank_in_int8(tmp_path: Path) -> None:
    """A row of zeros has no loudest value to scale by."""
    silent = dataclasses.replace(UPDATES[0], b=np.zeros((5, 1), np.float32))
    adapter = load_adapter(written(tmp_path, "int8", (silent,)), SITES, "t", "c")
    assert not adapter.values["down.B"].any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"format_version": 2}', "format_version must be one of 1"),
        ('{"rank": NaN}', "NaN is not a JSON value"),
        ('{"rank": 1, "rank": 2}', "is repeated"),
        (" " * ((16 << 20) + 1), "is larger than"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_malformed_records(text: str | bytes, said: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    file.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in str(refusal(file))
