"""Weights rounded with a view to what they will be multiplied by."""
