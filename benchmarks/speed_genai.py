"""onnxruntime-genai in a process of its own, for speed.py; run by an interpreter that has it.

    python benchmarks/speed_genai.py FOLDER THREADS TOOLS

FOLDER is a model of its own builder, or a bundle of ours; TOOLS is a tools.json. Calls are constrained by
its guidance, with the tokens that the grammar forces fed at once, and the part of the prompt that the
last call had as well stays in the cache: all that the library has for this.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
from speed_worker import CONTEXT, Decoded, Said, call_schema, serve

# llguidance's own setting for the form that the model was trained on: no spaces.
COMPACT = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False}


class Genai:
    """A model folder in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int, tools: Path) -> None:
        config = genai.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = genai.Model(config)
        self._tokenizer = genai.Tokenizer(self._model)
        self._schema = json.dumps(call_schema(tools) | {"x-guidance": COMPACT})
        self._caller: Any = None
        self._fed: list[int] = []

    def decode(self, prompt: list[int], new: int) -> Decoded:
        """See `speed_worker.Model`."""
        length = len(prompt) + 1 + new
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(self._model, parameters)
        started = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        return Decoded((first - started) * 1000, (time.perf_counter() - first) * 1000)

    def answer(self, prompt: str, most_new: int) -> Said:
        """See `speed_worker.Model`."""
        tokens = [int(token) for token in self._tokenizer.encode(prompt)]
        if self._caller is None:
            parameters = genai.GeneratorParams(self._model)
            parameters.set_search_options(max_length=CONTEXT, do_sample=False)
            parameters.set_guidance("json_schema", self._schema, enable_ff_tokens=True)
            self._caller = genai.Generator(self._model, parameters)
        kept = _common(tokens[:-1], self._fed)
        self._caller.rewind_to(kept)
        self._caller.append_tokens(tokens[kept:])
        while not self._caller.is_done() and self._caller.token_count() < len(tokens) + most_new:
            self._caller.generate_next_token()
        self._fed = tokens
        answer = self._caller.get_sequence(0)[len(tokens) :]
        return Said(self._tokenizer.decode(answer), len(tokens), len(answer))


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two begin with alike."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


if __name__ == "__main__":
    serve(lambda: Genai(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
