"""What is measured on the way and at the end, and what tasks ask."""
