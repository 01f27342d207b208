"""How fast partitions are scored, and in how much memory, beside the plain ways of doing it."""
