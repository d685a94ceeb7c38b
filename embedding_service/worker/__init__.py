"""The process that imports vLLM: its loop, its backends."""
