"""Pages with a sweep: what `train.sweep` runs."""
