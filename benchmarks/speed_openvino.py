"""OpenVINO GenAI in a process of its own, for speed.py; run by an interpreter that has it.

    python benchmarks/speed_openvino.py FOLDER THREADS TOOLS

FOLDER is what `optimum-cli export openvino` made; TOOLS is a tools.json. Calls are constrained by its
structured output, and its cache of prompt prefixes is on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from speed_worker import Decoded, Said, call_schema, serve


class OpenVINO:
    """A model folder in OpenVINO GenAI."""

    def __init__(self, folder: Path, threads: int, tools: Path) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        self._pipe = genai.LLMPipeline(
            str(folder), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )
        self._grammar = genai.StructuredOutputConfig(json_schema=json.dumps(call_schema(tools)))

    def decode(self, prompt: list[int], new: int) -> Decoded:
        """See `speed_worker.Model`."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = 1 + new, True
        config.do_sample, config.apply_chat_template = False, False
        tokens = openvino.Tensor(np.array([prompt], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        metrics = self._pipe.generate(genai.TokenizedInputs(tokens, mask), config).perf_metrics
        return Decoded(metrics.get_ttft().mean, new * metrics.get_tpot().mean)

    def answer(self, prompt: str, most_new: int) -> Said:
        """See `speed_worker.Model`."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = most_new, False, False
        config.structured_output_config = self._grammar
        result = self._pipe.generate([prompt], config)
        metrics = result.perf_metrics
        return Said(result.texts[0], metrics.get_num_input_tokens(), metrics.get_num_generated_tokens())


if __name__ == "__main__":
    serve(lambda: OpenVINO(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
