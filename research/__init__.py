"""Papers as folders; imports anything, imported by nothing."""
