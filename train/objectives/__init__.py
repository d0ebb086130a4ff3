"""What is minimised: one paper a file."""
