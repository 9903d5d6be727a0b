"""The parts of LoRA training: rows to tensors, precision, what is watched, what is resumed."""
