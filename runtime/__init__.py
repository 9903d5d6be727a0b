"""The device: a verified bundle in, text and checked function calls out; no torch."""
