"""genai_config.json: it describes the graph beside it, and onnxruntime-genai agrees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file

import runtime
from export.adapter import Factors, write_adapter
from export.branches import Switchable
from export.bundle import Description, package
from export.calibration import ACTIVATIONS
from export.checkpoint import export_checkpoint
from export.genai import Decoder, write_genai_config
from export.graph import Precision, write_graph
from export.tokenizer import SpecialTokens
from pipeline.data.generator.generate import generate
from pipeline.fingerprint import fingerprint
from pipeline.provenance import file_digest
from runtime.calls import call_grammar, load_tools, parse_calls, problems
from runtime.errors import ExportError
from runtime.sites import Belonging, FactorType, read_sites

CONTEXT = 64
COCKPIT = Path(__file__).parent.parent / "configs" / "cockpit-tools.json"
DECODER = Decoder(
    model_type="llama",
    context=CONTEXT,
    vocabulary=99,
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    shared_cache=True,
    position_ids=False,
)


def ignore(what: str, done: int, total: int) -> None:
    """No progress."""


def exported(checkpoint: Path, out: Path, precision: Precision) -> Path:
    out.mkdir()
    export_checkpoint(checkpoint, out, precision, 32, CONTEXT, ignore)
    return out


def test_it_describes_the_graph(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = exported(tiny_checkpoint, tmp_path / "out", "fp32")
    config = json.loads((out / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    session = onnxruntime.InferenceSession(out / decoder["filename"], providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    layers = range(decoder["num_hidden_layers"])
    names = decoder["inputs"]
    per_layer = [names[key] % i for i in layers for key in ("past_key_names", "past_value_names")]
    assert set(inputs) == {names["input_ids"], names["attention_mask"], *per_layer}
    names = decoder["outputs"]
    per_layer = [names[key] % i for i in layers for key in ("present_key_names", "present_value_names")]
    assert set(outputs) == {names["logits"], "hidden_states", *per_layer}
    _, heads, _, size = inputs["past_key_values.0.key"].shape
    assert (heads, size) == (decoder["num_key_value_heads"], decoder["head_size"])
    assert outputs["logits"].shape[-1] == model["vocab_size"]
    assert outputs["hidden_states"].shape[-1] == decoder["hidden_size"]
    assert (model["context_length"], model["type"]) == (CONTEXT, "llama")
    assert (model["eos_token_id"], model["bos_token_id"], model["pad_token_id"]) == ([2], 1, 2)
    assert config["search"]["past_present_share_buffer"] is True


def test_a_growing_cache_takes_positions(tmp_path: Path) -> None:
    decoder = replace(DECODER, shared_cache=False, position_ids=True)
    write_genai_config(decoder, SpecialTokens(None, (2, 3), 2), tmp_path)
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"
    assert config["search"]["past_present_share_buffer"] is False
    assert config["model"]["eos_token_id"] == [2, 3]
    assert "bos_token_id" not in config["model"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").symlink_to("/dev/full")
    with pytest.raises(ExportError, match="No space left"):
        write_genai_config(DECODER, SpecialTokens(None, (2,), 2), tmp_path)


def test_refuses_to_write_over_something(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ExportError, match="is not empty"):
        export_checkpoint(tiny_checkpoint, tmp_path, "fp32", 32, CONTEXT, ignore)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_onnxruntime_genai_generates_the_same(
    tiny_checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    """Greedy tokens of onnxruntime-genai and of a bare loop over the same folder."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    out = exported(tiny_checkpoint, tmp_path / "out", precision)
    prompt, new = np.array([5, 60, 7, 100, 9], np.int32), 24
    model = genai.Model(str(out))
    parameters = genai.GeneratorParams(model)
    length = len(prompt) + new
    parameters.set_search_options(max_length=length, min_length=length)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == greedy(out, list(map(int, prompt)), length)
    assert list(genai.Tokenizer(model).encode("open the window")) == encoded(out, "open the window")


def test_onnxruntime_genai_keeps_keys_and_values_in_int8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Greedy tokens, and again behind a rewind, are those of a bare loop."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    loudest = {f"layers.{layer}.{part}": np.full(32, 8.0) for layer in (0, 1) for part in ("keys", "values")}
    loudest |= {f"layers.{layer}.mlp.input": np.ones(64) for layer in (0, 1)}
    save_file({name: each.astype(np.float32) for name, each in loudest.items()}, tmp_path / ACTIVATIONS)
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(tiny_checkpoint, out, "fp32", 32, CONTEXT, ignore, tmp_path, kv_cache="int8")
    expected = greedy(out, list(PROMPT), LENGTH)
    model = genai.Model(str(out))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH, min_length=LENGTH)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(PROMPT, np.int32))
    for _ in range(2):
        while not generator.is_done():
            generator.generate_next_token()
        assert list(generator.get_sequence(0)) == expected
        generator.rewind_to(8)
        generator.append_tokens(np.array(expected[8:9], np.int32))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_onnxruntime_genai_answers_200_prompts_alike(
    tiny_checkpoint: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
    precision: Precision,
) -> None:
    """In-car utterances in two languages: the prompt's text, its tokens, and the greedy answer."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    (tmp_path / "exported").mkdir()
    export_checkpoint(tiny_checkpoint, tmp_path / "exported", precision, 32, 256, ignore)
    described = replace(tiny_description, precision=precision)
    bundle = tmp_path / "bundle"
    package(tmp_path / "exported", bundle, tiny_tools_file, described)
    assistant = runtime.load(bundle, threads=1)
    model = genai.Model(str(bundle))
    tokenizer = genai.Tokenizer(model)
    asked = generate(load_tools(COCKPIT), split="test", examples=200, chinese=0.5, seed=0)
    prompts = [assistant.prompt(record.utterance) for record in asked]
    for record, prompt in zip(asked, prompts, strict=True):
        messages = json.dumps(assistant.messages(record.utterance), ensure_ascii=False)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert list(tokenizer.encode(text)) == prompt
    answers = [answer_of(assistant, prompt, 16) for prompt in prompts]
    assert [genais_answer(genai, model, prompt, 16) for prompt in prompts] == answers
    assert len(set(map(tuple, answers))) > 50


def test_onnxruntime_genai_takes_our_grammar(tiny_bundle: Path) -> None:
    """As docs/integrators.md has it: whatever a model of random weights says is a list of valid calls."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    assistant = runtime.load(tiny_bundle, threads=1)
    model = genai.Model(str(tiny_bundle))
    tokenizer = genai.Tokenizer(model)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=256)
    parameters.set_guidance("lark_grammar", call_grammar(assistant.tools), enable_ff_tokens=True)
    generator = genai.Generator(model, parameters)
    called = set()
    for record in generate(load_tools(COCKPIT), split="test", examples=20, chinese=0.5, seed=1):
        prompt = assistant.prompt(record.utterance)
        generator.rewind_to(0)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        tokens = generator.get_sequence(0)
        if len(tokens) < 256:
            for call in parse_calls(tokenizer.decode(tokens[len(prompt) :])):
                assert problems(call, assistant.tools) == []
                called.add(call.name)
    assert called


def answer_of(assistant: runtime.Assistant, prompt: list[int], most: int) -> list[int]:
    """Our greedy answer, up to a stop token."""
    assistant.decoder.reset()
    answer: list[int] = []
    token = int(assistant.decoder.feed(prompt).argmax())
    while token not in assistant.manifest.prompt.stop_tokens and len(answer) < most:
        answer.append(token)
        token = int(assistant.decoder.feed([token]).argmax())
    return answer


def genais_answer(genai: Any, model: Any, prompt: list[int], most: int) -> list[int]:
    """That of onnxruntime-genai, which leaves the stop token out as well."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + most)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(map(int, generator.get_sequence(0)))[len(prompt) :]


PROMPT = [5, 60, 7, 100, 9]
LENGTH = len(PROMPT) + 24
TASKS = ("climate", "navigation")
Make = Callable[[Precision, FactorType], Path]


@pytest.fixture
def switchable(
    tiny_checkpoint: Path,
    tiny_exported: Path,
    tiny_tools_file: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> Make:
    """Makes a bundle with an adapter of random factors for each of two tasks."""

    def make(precision: Precision, dtype: FactorType) -> Path:
        folder = Path(shutil.copytree(tiny_exported, tmp_path / "exported"))
        digests = fingerprint(tiny_checkpoint).tensors
        write_graph(tiny_checkpoint, folder, precision, 32, 256, ignore, switchable=Switchable(8, digests))
        sites = read_sites(folder)
        parts = [(part, site.columns) for site in sites.sites for part in site.parts]
        belongs = Belonging(
            {part.tensor: part.digest for part, _ in parts},
            file_digest(folder / "tokenizer.json"),
            file_digest(folder / "chat_template.jinja"),
        )
        for seed, name in enumerate(TASKS):
            rng = np.random.default_rng(seed)
            rank = 2 + seed
            updates = [
                Factors(
                    part.tensor,
                    rng.normal(0, 0.2, (rank, columns)).astype(np.float32),
                    rng.normal(0, 0.2, (part.rows, rank)).astype(np.float32),
                )
                for part, columns in parts
            ]
            write_adapter(name, updates, sites, belongs, dtype, tmp_path)
        files = [tmp_path / f"{name}.onnx_adapter" for name in TASKS]
        described = replace(tiny_description, precision=precision)
        package(folder, tmp_path / "bundle", tiny_tools_file, described, files)
        return tmp_path / "bundle"

    return make


def ours(bundle: Path, tasks: tuple[str | None, ...]) -> list[list[int]]:
    """The greedy continuation of each task, end of text excluded."""
    assistant = runtime.load(bundle, threads=1)
    found = []
    for task in tasks:
        assistant.use(task)
        assistant.decoder.reset()
        tokens = list(PROMPT)
        logits = assistant.decoder.feed(tokens)
        while len(tokens) < LENGTH:
            logits[2] = -np.inf
            tokens.append(int(logits.argmax()))
            logits = assistant.decoder.feed(tokens[-1:])
        found.append(tokens)
    return found


def opened(genai: Any, bundle: Path) -> tuple[Any, Any]:
    """The bundle and its adapters, by the names of their tasks."""
    model = genai.Model(str(bundle))
    adapters = genai.Adapters(model)
    for name in TASKS:
        adapters.load(str(bundle / "adapters" / f"{name}.onnx_adapter"), name)
    return model, adapters


def generator_of(genai: Any, model: Any, adapters: Any, task: str | None) -> Any:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH, min_length=LENGTH)
    generator = genai.Generator(model, parameters)
    if task is not None:
        generator.set_active_adapter(adapters, task)
    return generator


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", "float32"), ("fp16", "float16"), ("int8", "float32"), ("int4", "float32")],
)
def test_onnxruntime_genai_switches_adapters(
    precision: Precision, dtype: FactorType, switchable: Make
) -> None:
    """Greedy tokens of each task, there and back, are those of our runtime."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    bundle = switchable(precision, dtype)
    asked = (None, "climate", "navigation", None, "climate")
    model, adapters = opened(genai, bundle)
    found = []
    for task in asked:
        generator = generator_of(genai, model, adapters, task)
        generator.append_tokens(np.array(PROMPT, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        found.append(list(map(int, generator.get_sequence(0))))
    assert found == ours(bundle, asked)
    assert len({tuple(tokens) for tokens in found}) == 3


def test_what_onnxruntime_genai_refuses(switchable: Make) -> None:
    """A second adapter of a name, and to let go of one that a generator holds."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    bundle = switchable("fp32", "float32")
    model, adapters = opened(genai, bundle)
    with pytest.raises(RuntimeError, match="already loaded: climate"):
        adapters.load(str(bundle / "adapters" / "climate.onnx_adapter"), "climate")
    generator = generator_of(genai, model, adapters, "climate")
    with pytest.raises(RuntimeError, match="still in use: climate"):
        adapters.unload("climate")
    del generator
    adapters.unload("climate")
    with pytest.raises(RuntimeError, match="not found: climate"):
        generator_of(genai, model, adapters, "climate")


def test_onnxruntime_genai_needs_the_graphs_own_type(switchable: Make) -> None:
    """It hands on what is stored: int8 factors are expanded by our runtime alone."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    model, adapters = opened(genai, switchable("fp32", "int8"))
    generator = generator_of(genai, model, adapters, "climate")
    with pytest.raises(RuntimeError, match=r"Actual: \(tensor\(int8\)\)"):
        generator.append_tokens(np.array(PROMPT, np.int32))


def greedy(out: Path, tokens: list[int], length: int) -> list[int]:
    """The most probable continuation, end of text excluded, each from an empty cache."""
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
    cache = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), types[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    while len(tokens) < length:
        inputs = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
        (logits,) = session.run(["logits"], inputs | cache)
        logits[0, 0, 2] = -np.inf
        tokens = [*tokens, int(logits[0, 0].argmax())]
    return tokens


def encoded(out: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(out / "tokenizer.json")).encode(text, add_special_tokens=False).ids
