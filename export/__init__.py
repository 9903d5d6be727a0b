"""Checkpoint → ONNX graph, tokenizer and bundle; free of torch where it can be."""
