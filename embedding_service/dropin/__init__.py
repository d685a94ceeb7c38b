"""The replaced systems, a file each, and what only they need."""
