"""Where arrays live: one mesh, logical names, rule tables."""
