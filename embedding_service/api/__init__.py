"""HTTP: one module per dialect, all on the same core."""
