"""Measuring a candidate bundle against the unmerged model, judging it, and drawing the report."""
