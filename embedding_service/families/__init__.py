"""What model families need beyond their files: data for both sides, model classes for the worker's."""
