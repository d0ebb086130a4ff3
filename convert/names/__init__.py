"""A file a family: the names that `transformers` gives its parts."""
