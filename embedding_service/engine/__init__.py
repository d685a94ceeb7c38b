"""The vLLM process and the client that starts, feeds and watches it."""
