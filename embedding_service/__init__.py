"""An OpenAI-compatible embedding gateway backed by vLLM."""

__version__ = "0.1.0"
