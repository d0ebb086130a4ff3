"""(state, batch) to (state, metrics), and all that surrounds it."""
