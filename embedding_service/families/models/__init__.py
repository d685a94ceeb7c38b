"""Our model classes for vLLM: the only files beside `worker/` that import it."""
