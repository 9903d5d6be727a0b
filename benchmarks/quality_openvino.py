"""Logits of an OpenVINO model, in a process of its own, for quality.py; run by an interpreter that has it.

    python benchmarks/quality_openvino.py FOLDER THREADS FILE

FOLDER is what `optimum-cli export openvino` made. A line of token ids is answered by a line when FILE holds
their logits, float32 (tokens, vocabulary). OpenVINO GenAI shows none, so this is the CPU plugin alone, which
chooses by itself how it multiplies and what it keeps keys and values in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino


def main() -> None:
    """Answer until standard input ends."""
    folder, threads, file = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    core = openvino.Core()
    model = core.compile_model(str(folder / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": threads})
    request = model.create_infer_request()
    print("ready", flush=True)
    for line in sys.stdin:
        ids = np.array([json.loads(line)], np.int64)
        request.reset_state()
        request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        np.save(file, request.get_tensor("logits").data[0].astype(np.float32, copy=False))
        print("done", flush=True)


if __name__ == "__main__":
    main()
