"""Scaling laws: fits with intervals, from runs or from a table."""
