"""Model families beyond their files: data for both sides, classes for the worker's side."""
