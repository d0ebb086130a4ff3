"""Our models against the same models elsewhere."""
