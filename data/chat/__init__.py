"""Conversations to tokens, and which of them the model is to say itself."""
