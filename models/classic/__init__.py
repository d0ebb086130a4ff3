"""Language models from before the networks, to measure those by."""
