"""Checkpoints of other houses, in and out."""
